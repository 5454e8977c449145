"""Ends spans with OpenTelemetry's SDK and nothing else; each is written down in a file as soon as its `end()` has returned.

python spans.py LEDGER HOW COUNT SIZE: HOW is how it goes on after COUNT spans of SIZE bytes each. Under
`opentelemetry-instrument` the spans go where that sends them, and nothing of Spanloop is imported here.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import threading

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

LEDGER, HOW, COUNT, SIZE = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def end_spans(numbers):
    tracer = trace.get_tracer("spans", "1")
    ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for _ in numbers:
        with tracer.start_as_current_span("chat") as span:
            span.set_attribute("gen_ai.input.messages", "m" * SIZE)
        os.write(ledger, b"%016x\n" % span.get_span_context().span_id)


def set_up():
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return trace.get_tracer_provider()
    from spanloop_exporter.spooling.processor import SpanloopSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "spans"}))
    provider.add_span_processor(SpanloopSpanProcessor())
    trace.set_tracer_provider(provider)
    return provider


def child():
    set_up()  # a spawned child has nothing of its parent's
    end_spans(range(COUNT))


if __name__ == "__main__":
    provider = set_up()
    if HOW == "for ever":
        print("ready", flush=True)
        end_spans(itertools.count())
    elif HOW == "threads":
        threads = [threading.Thread(target=child) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif HOW in ("fork", "spawn"):
        child()
        context = multiprocessing.get_context(HOW)
        processes = [context.Process(target=child) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        child()
    elif HOW == "prefork":
        child()
        workers = []
        for _ in range(4):
            worker = os.fork()
            if not worker:
                child()
                os._exit(0)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
    else:
        child()
    if HOW == "os._exit":
        os._exit(0)
    if HOW in ("SIGKILL", "SIGTERM"):
        os.kill(os.getpid(), signal.Signals[HOW])
    if HOW == "sys.exit":
        sys.exit(3)
    if HOW == "flush":
        print(provider.force_flush(20_000), flush=True)
    if HOW == "wait":
        print("ready", flush=True)
        sys.stdin.read()
