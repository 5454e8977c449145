"""Recovers the tool steps of agents that emit no tool spans, from the messages in which the results come back.

A call's answer asks for tools; a later call brings what they gave. Between the two lies the step: a span `execute_tool NAME`
below the call that asked, from that call's end to the start of the call that brought the result. Where an instrumentation
has emitted a span for the tool, that one stands. History that is sent again and again counts once.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind
from opentelemetry.util.types import AttributeValue

from spanloop_exporter.calls import claims
from spanloop_exporter.calls.record import Call, Reported, ToolCall
from spanloop_exporter.safety import quietly

RECOVERED: Final = "spanloop.recovered"
# Tool call ids that are waited for or done; a run of hundreds of steps in each of some ten threads fits.
MAX_IDS: Final = 8192
# Servers number their calls anew in every answer, some of them ("call_0"): of one id so many conversations may wait side
# by side, and so many that are done are known, for a request that is made again.
_MAX_WAITING_OF_ONE_ID: Final = 256
_MAX_DONE_OF_ONE_ID: Final = 16
_MAX_TOOL_SPANS: Final = 2048


class Result(NamedTuple):
    """One tool result in a request."""

    id: str
    name: str  # of the call in the same request's history; empty: the history is at the server
    arguments: str
    output: Any  # as it was sent
    new: bool  # nothing was said by the model since

    @property
    def content(self) -> str:
        """The output as text."""
        if isinstance(self.output, str):
            return self.output
        return json.dumps(self.output, ensure_ascii=False, default=str)


@dataclass(slots=True, eq=False)
class _Awaited:
    reported: Reported
    tool: ToolCall | None  # None once the result has come
    done: tuple[str, int] = ("", 0)

    def signature(self) -> tuple[str, int]:
        """Name, and hash of the arguments."""
        return self.done if self.tool is None else (self.tool.name, hash(self.tool.arguments))


class _ToolSpan(NamedTuple):
    """A span that somebody's instrumentation emitted for a tool."""

    id: str
    name: str  # as `_plain` makes it
    trace_id: int
    parent_id: int
    start_ns: int
    end_ns: int


class ToolSteps:
    """Memory of which tool calls wait for their result, and of the tool spans of others; threads share one."""

    def __init__(self) -> None:
        self._awaited: OrderedDict[str, list[_Awaited]] = OrderedDict()
        self._spans: deque[_ToolSpan] = deque(maxlen=_MAX_TOOL_SPANS)
        # Reentrant: a signal handler that calls a model may come in between.
        self._lock = threading.RLock()

    def forked(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def asked(self, call: Call) -> None:
        """Wait for the results of the tool calls that an answer has so far."""
        new = call.new_tools
        call.new_tools = [tool for tool in new if not tool.id]  # in a stream, it may come later
        with self._lock:
            for tool in new:
                if tool.id:
                    self._add(tool.id, _Awaited(call.reported, tool))

    def results(self, body: Mapping[str, Any], call: Call) -> None:
        """Emit the steps whose results `call` brings with its request `body`."""
        items = _items(body)
        if items:
            call.reported.prompt = (len(items), _hash(items[-1]))
        for result in results_in(body):
            known = self._awaited.get(result.id)
            # Old, and done; or asked for by another process, whose business they are; or of an id that is in use anew.
            if not result.new and (known is None or len(known) > 1 or known[0].tool is None):
                continue
            with self._lock:
                awaited = self._find(result, body, items, call)
                if awaited is None:
                    awaited = _Awaited(Reported(), ToolCall(result.id, result.name, [result.arguments]))
                    self._add(result.id, awaited)
                if awaited.tool is None:
                    continue
                awaited.done = awaited.signature()
                tool, awaited.tool = awaited.tool, None
                emitted = self._emitted(tool, awaited.reported, call, body)
            if not emitted:
                _emit(tool, result, awaited.reported, call)

    @quietly
    def ended(self, span: ReadableSpan, end_ns: int) -> None:
        """Take note of a span that is about to end, if it is of a tool."""
        attributes = span.attributes or {}
        if not _is_tool(attributes) or RECOVERED in attributes:
            return
        context = span.get_span_context()
        assert context is not None  # a recording span has one
        parent_id = span.parent.span_id if span.parent is not None else 0
        identity = str(attributes.get("gen_ai.tool.call.id", ""))
        note = _ToolSpan(
            identity, _name(span.name, attributes), context.trace_id, parent_id, span.start_time or 0, end_ns
        )
        # No lock: a span may end in a finaliser, which comes at any moment, in a thread that holds it.
        self._spans.append(note)

    def _add(self, identity: str, awaited: _Awaited) -> None:
        known = self._awaited.setdefault(identity, [])
        done = [one for one in known if one.tool is None]
        if len(done) >= _MAX_DONE_OF_ONE_ID:
            known.remove(done[0])
        elif len(known) >= _MAX_WAITING_OF_ONE_ID:
            del known[0]
        known.append(awaited)
        self._awaited.move_to_end(identity)
        while len(self._awaited) > MAX_IDS:
            self._awaited.popitem(last=False)

    def _find(
        self, result: Result, body: Mapping[str, Any], items: Sequence[Any], call: Call
    ) -> _Awaited | None:
        known = self._awaited.get(result.id)
        if not known:
            return None
        self._awaited.move_to_end(result.id)
        if len(known) == 1:
            return known[0]
        # One id of several calls: theirs are the same name and arguments, the longest prompt that goes on here, the same
        # thread or task; of several that are left (attempts at one task, side by side) one that has no result yet.
        candidates = known
        if result.name:
            signature = (result.name, hash(result.arguments))
            candidates = [one for one in candidates if one.signature() == signature] or candidates
        if previous := body.get("previous_response_id"):
            candidates = [one for one in candidates if one.reported.response_id == previous] or candidates
        elif here := [one for one in candidates if _continues(items, one.reported.prompt)]:
            longest = max(one.reported.prompt[0] for one in here)
            candidates = [one for one in here if one.reported.prompt[0] == longest]
        candidates = [one for one in candidates if one.reported is call.after] or candidates
        return next((one for one in candidates if one.tool is not None), candidates[-1])

    def _emitted(self, tool: ToolCall, asking: Reported, call: Call, body: Mapping[str, Any]) -> bool:
        """Whether somebody's span is this step; each stands for one."""
        traces = {span.trace_id for span in (asking.span, call.reported.span) if span is not None}
        beside = {asking.parent_id, call.reported.parent_id, asking.span.span_id if asking.span else 0} - {0}
        since, name = asking.ended_ns or asking.answered_ns, _plain(tool.name)
        best: tuple[int, _ToolSpan] | None = None
        for span in reversed(self._spans.copy()):
            if span.end_ns < since:
                break
            if span.start_ns > call.started_ns:
                continue
            here = span.trace_id in traces
            if tool.id and span.id == tool.id:
                rank = 3
            elif span.name == name and (here or not span.parent_id):
                rank = 2
            elif here and (
                (span.parent_id in beside and span.name not in _offered(body))
                or (span.name == "handoff" and name.startswith("transferto"))
            ):
                rank = 1  # `@tool(name="other")`, if that is no other tool; a handoff is a tool to the model
            else:
                continue
            if best is None or rank > best[0]:
                best = (rank, span)
        if best is None:
            return False
        self._spans.remove(best[1])
        return True


STEPS: Final = ToolSteps()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STEPS.forked)


def results_in(body: Mapping[str, Any]) -> Iterator[Result]:
    """The tool results of a request to the chat or the Responses API, in order."""
    items = _items(body)
    named: dict[str, tuple[str, str]] = {}
    # place, id, output, and what the history has said of that id until then
    found: list[tuple[int, str, Any, tuple[str, str]]] = []
    last_of_model = -1
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        kind = item.get("role") or item.get("type")
        if kind == "tool":
            identity = str(item.get("tool_call_id") or "")
            found.append((place, identity, item.get("content"), named.get(identity, ("", ""))))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            identity = str(item.get("call_id") or "")
            found.append((place, identity, item.get("output"), named.get(identity, ("", ""))))
        elif kind in ("function_call", "custom_tool_call"):
            last_of_model = place
            named[str(item.get("call_id"))] = (
                str(item.get("name")),
                str(item.get("arguments", item.get("input"))),
            )
        elif kind == "assistant":
            last_of_model = place
            calls = item.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                function = (
                    (call.get("function") or call.get("custom") or {}) if isinstance(call, dict) else {}
                )
                if function:
                    arguments = function.get("arguments", function.get("input"))
                    named[str(call.get("id"))] = (str(function.get("name")), str(arguments))
    for place, identity, output, (name, arguments) in found:
        if identity:
            yield Result(identity, name, arguments, output, place > last_of_model)


def _offered(body: Mapping[str, Any]) -> set[str]:
    """Names of the tools that a request offers, as `_plain` makes them."""
    tools = body.get("tools")
    functions = [
        tool.get("function", tool)
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict)
    ]
    return {_plain(str(function.get("name"))) for function in functions if isinstance(function, dict)}


def _items(body: Mapping[str, Any]) -> Sequence[Any]:
    items = body.get("messages", body.get("input"))
    return items if isinstance(items, list) else ()


def _hash(item: Any) -> int:
    content = item.get("content", item.get("output")) if isinstance(item, dict) else item
    return hash(content if isinstance(content, str) else repr(content))


def _continues(items: Sequence[Any], prompt: tuple[int, int]) -> bool:
    length, last = prompt
    return 0 < length < len(items) and _hash(items[length - 1]) == last


def _emit(tool: ToolCall, result: Result, asking: Reported, call: Call) -> None:
    parent: SpanContext | None = asking.span or call.reported.span
    if parent is None or not tool.name:
        return  # no span reports the call: whoever instruments nothing gets nothing
    until = call.started_ns
    asked_ns = asking.ended_ns if 0 < asking.ended_ns <= until else asking.answered_ns
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.name,
        "gen_ai.tool.call.id": tool.id,
        "gen_ai.tool.type": "function",
        RECOVERED: "messages",
    }
    if claims.content_allowed():
        attributes["gen_ai.tool.call.arguments"] = tool.arguments
        attributes["gen_ai.tool.call.result"] = result.content
    span = trace.get_tracer(claims.SCOPE).start_span(
        f"execute_tool {tool.name}",
        context=trace.set_span_in_context(NonRecordingSpan(parent)),
        kind=SpanKind.INTERNAL,
        # An asker in another process left no time here.
        start_time=min(asked_ns or until, until),
        attributes=attributes,
    )
    span.end(until)


def _is_tool(attributes: Mapping[str, Any]) -> bool:
    return (
        attributes.get("gen_ai.operation.name") == "execute_tool"
        or attributes.get("traceloop.span.kind") in ("tool", "handoff")
        or attributes.get("openinference.span.kind") == "TOOL"
        or "gen_ai.tool.call.id" in attributes
    )


def _name(span_name: str, attributes: Mapping[str, Any]) -> str:
    if attributes.get("traceloop.span.kind") == "handoff":
        return "handoff"
    for key in ("gen_ai.tool.name", "tool.name", "traceloop.entity.name"):
        if attributes.get(key):
            return _plain(str(attributes[key]))
    return _plain(span_name.removeprefix("execute_tool ").removesuffix(".tool"))


def _plain(name: str) -> str:
    """Letters and digits alone: frameworks write "Get Weather" for get_weather."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
