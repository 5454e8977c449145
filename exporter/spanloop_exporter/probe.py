"""Run under `opentelemetry-instrument`, proves what is captured here: makes one model call against a server of its own.

`spanloop doctor` starts it as `opentelemetry-instrument python -m spanloop_exporter.probe FILE` and reads the JSON that it
leaves in FILE. Nothing of it reaches the user's collector: the exporter is taken off before the call is made.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

# instrumentor's entry point → the distribution that it instruments
LIBRARIES = {"openai": "openai", "langchain": "langchain-core"}
PROMPT = "spanloop doctor asks"
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


def report() -> dict[str, Any]:
    """What is set up in this process, and what one call of each library leaves behind."""
    provider = trace.get_tracer_provider()
    found: dict[str, Any] = {"provider": type(provider).__name__, "sdk": isinstance(provider, TracerProvider)}
    spans = InMemorySpanExporter()
    if isinstance(provider, TracerProvider):
        # The SDK has no public way to look at its processors, nor to take one off.
        active = provider._active_span_processor
        processors = active._span_processors
        found["exporters"] = [
            {"class": type(p.span_exporter).__name__, "endpoint": getattr(p.span_exporter, "_endpoint", None)}
            for p in processors
            if isinstance(p, BatchSpanProcessor | SimpleSpanProcessor)
        ]
        limits = provider._span_limits
        found["max_attributes"] = limits.max_span_attributes
        found["max_length"] = limits.max_span_attribute_length
        found["service"] = provider.resource.attributes.get("service.name")
        active._span_processors = (SimpleSpanProcessor(spans),)
    found["libraries"] = {}
    for name, distribution in LIBRARIES.items():
        result = _installed(name, distribution)
        if result["library"]:
            spans.clear()
            try:
                _CALLS[name]()
            except Exception as error:  # whatever a broken library raises belongs into the report
                result["call_error"] = f"{type(error).__name__}: {error}"
            result["spans"] = [_keys(span) for span in spans.get_finished_spans()]
        found["libraries"][name] = result
    return found


def _installed(name: str, distribution: str) -> dict[str, Any]:
    result: dict[str, Any] = {"library": None, "instrumentor": False, "import_error": None, "spans": []}
    try:
        result["library"] = version(distribution)
    except PackageNotFoundError:
        return result
    for entry_point in entry_points(group="opentelemetry_instrumentor", name=name):
        result["instrumentor"] = True
        try:
            entry_point.load()
        except Exception as error:  # this is the failure that OpenTelemetry skips in silence
            result["import_error"] = f"{type(error).__name__}: {error}"
    return result


def _keys(span: ReadableSpan) -> dict[str, Any]:
    attributes = dict(span.attributes or {})
    prompt = [key for key, value in attributes.items() if isinstance(value, str) and PROMPT in value]
    return {"name": span.name, "keys": sorted(attributes), "prompt_in": prompt}


def _ask_openai() -> None:
    import openai

    with _server() as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        client.chat.completions.create(model="doctor", messages=[{"role": "user", "content": PROMPT}])


def _ask_langchain() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    FakeListChatModel(responses=["doctor answers"]).invoke(PROMPT)


_CALLS = {"openai": _ask_openai, "langchain": _ask_langchain}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps(_ANSWER).encode()
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
