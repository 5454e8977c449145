"""Run under `opentelemetry-instrument`, proves what is captured here: makes model calls against a server of its own.

`spanloop doctor` starts it as `opentelemetry-instrument python -m spanloop_exporter.probe FILE` and reads the JSON that it
leaves in FILE. Nothing of it reaches the user's collector: the processors are taken off before the calls are made.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spanloop_exporter.frameworks import WAITING_INSTRUMENTORS

# instrumentor's entry point → the distribution that it instruments
LIBRARIES = {"openai": "openai", "langchain": "langchain-core"}
PROMPT = "spanloop doctor asks"
END = "and that was all"
# A long agent history; limits on a value's length are usually set to a few thousand characters.
_FILLER = "." * 100_000
# What the instrumentors and the SDK read; headers may hold a token and stay out of the report.
_SETTINGS = ("OTEL_", "TRACELOOP_", "SPANLOOP_", "OPENINFERENCE_", "TRACEPARENT")
_ANSWER = {
    "id": "chatcmpl-doctor",
    "object": "chat.completion",
    "created": 1,
    "model": "doctor",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "doctor answers"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
_RESPONSE = {
    "id": "resp_doctor",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "doctor",
    "output": [
        {
            "id": "msg_doctor",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "doctor answers", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}


def report() -> dict[str, Any]:
    """What is set up in this process, and what one call of each kind leaves behind."""
    provider = trace.get_tracer_provider()
    found: dict[str, Any] = {
        "provider": f"{type(provider).__module__}.{type(provider).__name__}",
        "sdk": isinstance(provider, TracerProvider),
        "propagates": sorted(propagate.get_global_textmap().fields),
        "settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_SETTINGS) and not name.endswith(("HEADERS", "TOKEN", "STORE"))
        },
        # Before the calls: an instrumentor that gives up later is found by its calls.
        "instrumentors": [_instrumentor(entry_point) for entry_point in _instrumentors()],
    }
    spans = InMemorySpanExporter()
    if isinstance(provider, TracerProvider):
        # The SDK has no public way to look at its processors, nor to take them off.
        active = provider._active_span_processor
        found["processors"] = [_processor(processor) for processor in active._span_processors]
        limits = provider._span_limits
        found["max_attributes"] = limits.max_span_attributes
        found["max_length"] = limits.max_span_attribute_length
        found["max_events"] = limits.max_events
        found["sampler"] = provider.sampler.get_description()
        found["service"] = provider.resource.attributes.get("service.name")
        # What only looks on, as our own capture of calls does, stays: it is part of what is to be proved.
        watching = [
            processor
            for processor in active._span_processors
            if type(processor).__module__.startswith("spanloop_exporter.")
            and not hasattr(processor, "span_exporter")
        ]
        active._span_processors = (*watching, SimpleSpanProcessor(spans))
    found["libraries"] = {}
    for name, distribution in LIBRARIES.items():
        try:
            library = version(distribution)
        except PackageNotFoundError:
            continue
        calls = {}
        for kind, call in _CALLS[name].items():
            spans.clear()
            error = ""
            try:
                call()
            except Exception as failure:  # whatever a broken library raises belongs into the report
                error = f"{type(failure).__name__}: {failure}"
            calls[kind] = {"error": error, "spans": [_facts(span) for span in spans.get_finished_spans()]}
        found["libraries"][name] = {"version": library, "calls": calls}
    return found


def _instrumentors() -> Iterator[EntryPoint]:
    yield from entry_points(group="opentelemetry_instrumentor")


def _instrumentor(entry_point: EntryPoint) -> dict[str, Any]:
    """Whether OpenTelemetry loaded it; it skips one that fails to import with at most a line in the log."""
    found: dict[str, Any] = {
        "name": entry_point.name,
        "value": entry_point.value,
        "distribution": entry_point.dist.name if entry_point.dist else "",
        "active": False,
        "error": "",
        "missing": False,
        "conflict": "",
    }
    off = {name.strip() for name in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    if off & {entry_point.name, "*"}:
        return found
    conflict = get_dist_dependency_conflicts(entry_point.dist) if entry_point.dist else None
    if conflict is not None:
        wrong = conflict.found or ", ".join(conflict.found_any or [])
        found["missing"] = not wrong
        found["conflict"] = f"does not instrument {wrong}" if wrong else ""
        return found
    try:
        if library := WAITING_INSTRUMENTORS.get(entry_point.name):
            importlib.import_module(library)
        instrumentor = entry_point.load()()
        # A singleton: this is the one that was instrumented, or was not.
        found["active"] = bool(instrumentor.is_instrumented_by_opentelemetry)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _processor(processor: object) -> dict[str, Any]:
    # The SDK's processors name it so; one of a vendor may have none, and then its target cannot be told.
    exporter = getattr(processor, "span_exporter", None)
    endpoint = getattr(exporter, "_endpoint", None)
    return {
        "processor": f"{type(processor).__module__}.{type(processor).__name__}",
        "exporter": f"{type(exporter).__module__}.{type(exporter).__name__}" if exporter is not None else "",
        "endpoint": endpoint if isinstance(endpoint, str) else "",
        "insecure": getattr(exporter, "_insecure", None),
    }


def _facts(span: ReadableSpan) -> dict[str, Any]:
    attributes = dict(span.attributes or {})
    texts = {key: value for key, value in attributes.items() if isinstance(value, str)}
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "scope": scope.name if scope else "",
        "keys": sorted(attributes),
        "prompt_in": sorted(key for key, value in texts.items() if PROMPT in value),
        "whole_in": sorted(key for key, value in texts.items() if PROMPT in value and END in value),
        # One model call is one such span; a second one is a second instrumentor.
        "model_call": any(key in attributes for key in ("gen_ai.request.model", "llm.model_name")),
    }


def _prompt() -> str:
    return f"{PROMPT} {_FILLER} {END}"


def _ask_chat() -> None:
    import openai

    with _server() as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        client.chat.completions.create(model="doctor", messages=[{"role": "user", "content": _prompt()}])


def _ask_responses() -> None:
    import openai

    with _server() as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        client.responses.create(model="doctor", input=_prompt())


def _ask_langchain() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    FakeListChatModel(responses=["doctor answers"]).invoke(_prompt())


_CALLS: dict[str, dict[str, Callable[[], None]]] = {
    "openai": {"chat completion": _ask_chat, "response": _ask_responses},
    "langchain": {"chat model": _ask_langchain},
}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        answer: dict[str, Any] = _RESPONSE if self.path.endswith("/responses") else _ANSWER
        if asked.get("return_token_ids") and answer is _ANSWER:
            # As vLLM does, so that the capture of tokens is proved as well.
            choice = {**_ANSWER["choices"][0], "token_ids": [4, 5]}  # type: ignore[index]  # a list of one
            if asked.get("logprobs"):
                entries: list[dict[str, Any]] = [
                    {"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": []} for t in "ab"
                ]
                choice["logprobs"] = {"content": entries, "refusal": None}
            answer = {**_ANSWER, "choices": [choice], "prompt_token_ids": [1, 2, 3]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The doctor's output is not the place for access logs."""


@contextmanager
def _server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(report()))
