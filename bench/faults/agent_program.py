"""An agent for the faults: ends spans as fast as it can and writes down which; what it does at the end is its second argument.

The spans come from the provider that `opentelemetry-instrument` set up; nothing of Spanloop is imported or called.
"""

from __future__ import annotations

import os
import sys
import threading

from opentelemetry import trace

_TEXT = "x" * 2000


class Diary:
    """One line before a span is ended and one after: what is written after a crash was certainly ended."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, word: str, span: trace.Span) -> None:
        """A write of its own, which a killed process cannot lose half of."""
        context = span.get_span_context()
        os.write(self._descriptor, f"{word} {context.trace_id:032x} {context.span_id:016x}\n".encode())


def end_spans(diary: Diary, count: int | None) -> None:
    """Ends `count` spans, two a trace; None: until the process dies."""
    tracer = trace.get_tracer("faults")
    done = 0
    while count is None or done < count:
        with tracer.start_as_current_span("turn", end_on_exit=False) as outer:
            inner = tracer.start_span("chat", attributes={"gen_ai.input.messages": _TEXT, "n": done})
        for span in (inner, outer):
            diary.note("begun", span)
            span.end()
            diary.note("ended", span)
        done += 2


def main(path: str, what: str) -> None:
    """`run`: until it is killed; `exit`: os._exit after some; `fork`: so do its children; `end`: a clean end."""
    diary = Diary(path)
    if what == "run":
        threads = [threading.Thread(target=end_spans, args=(diary, None), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif what == "exit":
        end_spans(diary, 200)
        os._exit(3)
    elif what == "fork":
        end_spans(diary, 50)
        children = []
        for depth in range(3):
            if (child := os.fork()) == 0:
                end_spans(diary, 50)
                if depth == 1 and os.fork() == 0:
                    end_spans(diary, 50)
                os._exit(0)
            children.append(child)
            end_spans(diary, 50)
        for child in children:
            os.waitpid(child, 0)
        end_spans(diary, 50)
        os._exit(0)
    else:
        end_spans(diary, 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
