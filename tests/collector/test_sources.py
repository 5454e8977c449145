"""Other people's senders in front of the collector: the official JavaScript exporters, and rotel (the Python ones: test_capture)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tests.collector import rotel_process
from tests.collector.capture_process import Capture, running, trace_request
from tests.collector.receivers import receivers
from tests.collector.test_capture import post

JAVASCRIPT = Path(__file__).parent / "js"
PATIENCE_S = 120


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with running(tmp_path_factory.mktemp("sources")) as capture:
        yield capture


# --- JavaScript ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip(
            "THE JAVASCRIPT EXPORTERS ARE NOT TESTED: npm is not on PATH; install Node.js 20.6 or newer"
        )
    folder = tmp_path_factory.mktemp("js")
    for name in ("package.json", "package-lock.json", "export.mjs"):
        shutil.copy(JAVASCRIPT / name, folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("protocol", "compression"), [("proto", "none"), ("http", "gzip"), ("grpc", "gzip")])
def test_the_official_javascript_exporters(
    capture: Capture, javascript: Path, protocol: str, compression: str
) -> None:
    """`http` is OTLP/JSON, whose hex ids and bare numbers are a form of their own."""
    service = f"js-{protocol}-{compression}"
    grpc = protocol == "grpc"
    address = f"http://{capture.otlp_grpc}" if grpc else f"{capture.otlp_http}/v1/traces"
    done = subprocess.run(
        ["node", "export.mjs", protocol, address, service, compression],
        cwd=javascript,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    capture.flush()
    rows = capture.query(
        "SELECT SpanName, SpanKind, TraceId, ParentSpanId != '', SpanAttributes, Events.Name, ScopeVersion, StatusCode,"
        f" Duration < 60000000000 FROM otel_traces WHERE ServiceName = '{service}' ORDER BY SpanName"
    )
    attributes = {"text": "héllo", "number": "3", "ratio": "0.5", "flag": "true", "list": '["a","b"]'}
    trace_id = done.stdout.strip()
    assert rows == [
        ("child", "Internal", trace_id, True, {}, ["exception"], "1.2", "Error", True),
        ("parent", "Client", trace_id, False, attributes, [], "1.2", "Unset", True),
    ]


# --- rotel -----------------------------------------------------------------------------------------------------------


needs_rotel = pytest.mark.skipif(bool(rotel_process.why_not()), reason=rotel_process.why_not())


@contextlib.contextmanager
def rotel(endpoint: str, protocol: str, folder: Path, *more: str) -> Iterator[str]:
    """A rotel without a processor that forwards to `endpoint`; yields its own OTLP/HTTP address."""
    exporter = [
        "--exporter",
        "otlp",
        "--otlp-exporter-endpoint",
        endpoint,
        "--otlp-exporter-protocol",
        protocol,
    ]
    with rotel_process.running(folder / "rotel.log", *exporter, *more, processor=None) as found:
        yield found.url


@needs_rotel
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rotel_in_front(capture: Capture, tmp_path: Path, protocol: str) -> None:
    endpoint = capture.otlp_http if protocol == "http" else f"http://{capture.otlp_grpc}"
    with rotel(endpoint, protocol, tmp_path) as address:
        resource = Resource.create({"service.name": f"rotel-{protocol}"})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces")))
        with provider.get_tracer("rotel-test").start_as_current_span("forwarded") as span:
            span.set_attribute("gen_ai.input.messages", '[{"role": "user"}]')
        provider.shutdown()
    # It has ended, and so has sent what it had.
    capture.flush()
    assert capture.query(
        f"SELECT SpanName, SpanAttributes FROM otel_traces WHERE ServiceName = 'rotel-{protocol}'"
    ) == [("forwarded", {"gen_ai.input.messages": '[{"role": "user"}]'})]


@needs_rotel
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rotel_sends_again_what_was_refused_for_lack_of_room(tmp_path: Path, protocol: str) -> None:
    """Its retry after a 500 carries an empty body, which would be lost; after our 503 and UNAVAILABLE it carries the spans."""
    with receivers(tmp_path, min_free_bytes=1 << 62) as both:
        refused = threading.Event()
        real = both.statistics.add

        def add(name: str, count: int = 1, **labels: str) -> None:
            real(name, count, **labels)
            if labels.get("outcome") == "busy":
                both.intake.space.min_free_bytes = 0
                refused.set()

        both.statistics.add = add  # type: ignore[method-assign]  # to hear of the refusal without waiting in a loop
        endpoint = both.http if protocol == "http" else f"http://{both.grpc}"
        soon = ("--otlp-exporter-retry-initial-backoff", "100ms")
        with rotel(endpoint, protocol, tmp_path, *soon) as address:
            assert post(f"{address}/v1/traces", trace_request("kept").SerializeToString())[0] == 200
            assert refused.wait(PATIENCE_S)
        assert len(both.logged()) == 1
        assert both.statistics.total("spanloop_requests_total", outcome="empty") == 0
