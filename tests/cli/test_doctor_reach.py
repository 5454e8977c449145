"""What `spanloop doctor` says of the way out: against real servers."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import trustme
from aiohttp import web
from bench.gateway.process import serve
from tests.cli.doctor_checks import by_name, only, trial
from tests.collector import capture_process

from spanloop.doctor import reach
from spanloop.doctor.check import Check
from spanloop.doctor.trial import Processor
from spanloop_exporter.spooling.settings import Endpoint
from spanloop_exporter.spooling.targets import OtlpTarget
from spanloop_store import connect, read_owner


@contextmanager
def collector(
    *, token: str = "", health: int = 200, state: str = "ok", date: str = "", accepted: int = 200
) -> Iterator[str]:
    """Answers exports as a collector does; its own date if one is given."""

    async def export(request: web.Request) -> web.Response:
        shown = request.headers.get("authorization")
        status = accepted if not token or shown == f"Bearer {token}" else 401
        return web.Response(status=status, headers={"date": date} if date else None)

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": state, "store": "ok" if state == "ok" else "away"}, status=health)

    app = web.Application()

    async def moved(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/v1/traces")

    app.router.add_post("/moved/v1/traces", moved)
    app.router.add_get("/v1/traces", healthz)  # where a client that follows a redirect ends
    app.router.add_post("/v1/traces", export)
    app.router.add_get("/healthz", healthz)
    with serve(app) as url:
        yield url


def ask(url: str, **environ: str) -> dict[str, Check]:
    return by_name(reach.check_http(reach.endpoint_for({"OTEL_EXPORTER_OTLP_ENDPOINT": url, **environ})))


def test_a_collector_that_takes_spans() -> None:
    with collector() as url:
        checks = ask(url)
    assert {name: check.status for name, check in checks.items()} == {
        "exporter": "ok",
        "collector": "ok",
        "clock": "ok",
    }


def test_a_collector_that_is_not_ours_or_not_well() -> None:
    with collector(health=404) as url:
        assert "not Spanloop's" in ask(url)["collector"].detail
    with collector(health=503, state="refusing") as url:
        assert ask(url)["collector"].status == "warn"
    # It takes requests and answers 200, and its store takes nothing.
    with collector(state="degraded") as url:
        check = ask(url)["collector"]
        assert (check.status, check.detail) == ("warn", f"{url}/healthz is degraded: store: away")


def test_any_success_is_one_and_a_redirect_is_none() -> None:
    """As the exporter sees it."""
    with collector(accepted=202) as url:
        assert ask(url)["exporter"].status == "ok"
        moved = ask(f"{url}/moved")["exporter"]
    assert (moved.status, "answers 302" in moved.detail) == ("FAIL", True)


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("http://[::1", "is no address"),
        ("http://127.0.0.1:43x8", "is no address"),
        ("localhost:4318", "is no address"),
        ("http://", "is no address"),
    ],
)
def test_an_address_that_is_none(url: str, detail: str) -> None:
    check = ask(url)["exporter"]
    assert (check.status, detail in check.detail) == ("FAIL", True)
    assert check.fix == "export OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318"
    # In the agent it is named in a message, which must not fail.
    assert OtlpTarget(Endpoint(url)).name == url


def test_the_port_of_grpc() -> None:
    with grpc_collector() as endpoint:
        check = ask(f"http://{endpoint}")["exporter"]
    assert (check.status, "not in HTTP" in check.detail) == ("FAIL", True)
    assert check.fix == "export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"


def test_a_proxy_that_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter goes through it, so the doctor does."""
    monkeypatch.setenv("http_proxy", "http://user:hidden@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with collector() as url:
        check = ask(url)["exporter"]
        assert (check.status, "through the proxy http://127.0.0.1:1" in check.detail) == ("FAIL", True)
        assert "hidden" not in str(check)
        monkeypatch.setenv(*check.fix.removeprefix("export ").split("="))
        assert ask(url)["exporter"].status == "ok"


def test_no_secret_is_shown() -> None:
    with collector() as url:
        named = ask(url.replace("//", "//user:hidden@"))
        broken = ask(url, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20hid%0Aden")
    assert named["exporter"].status == "ok"
    assert broken["exporter"].status == "FAIL"
    assert not any("hid" in str(check) for check in (*named.values(), *broken.values()))


def test_a_token_that_is_missing_wrong_or_right() -> None:
    with collector(token="s3cr=t") as url:
        missing, wrong = ask(url), ask(url, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20guess")
        assert (missing["exporter"].status, wrong["exporter"].status) == ("FAIL", "FAIL")
        assert "401: no token was shown" in missing["exporter"].detail
        assert "401: the token was refused" in wrong["exporter"].detail
        assert "guess" not in str(wrong)
        template = missing["exporter"].fix.removeprefix("export OTEL_EXPORTER_OTLP_HEADERS=").strip("'")
        fixed = ask(url, OTEL_EXPORTER_OTLP_HEADERS=template.replace("TOKEN", "s3cr%3Dt"))
    assert fixed["exporter"].status == "ok"


def test_nobody_there() -> None:
    check = ask("http://127.0.0.1:1")["exporter"]
    assert check.status == "FAIL"
    assert "does not answer" in check.detail
    assert "spanloop up" in check.fix


def test_a_base_url_that_carries_the_signals_path_already() -> None:
    with collector() as url:
        check = ask(f"{url}/v1/traces")["exporter"]
    assert (check.status, "404" in check.detail) == ("FAIL", True)
    assert "without /v1/traces" in check.fix


def test_a_clock_that_is_off() -> None:
    with collector(date="Mon, 01 Jan 2024 00:00:00 GMT") as url:
        check = ask(url)["clock"]
    assert check.status == "warn"
    assert "ahead of the collector" in check.detail
    assert reach.check_skew(-30).detail.startswith("this machine is 30 s behind")


class _TakesAll(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def tls_collector(context: ssl.SSLContext) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _TakesAll) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_certificate_that_is_not_trusted_and_then_is(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tls_collector(context) as url:
        unknown = ask(url)["exporter"]
        known = ask(url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate))["exporter"]
        gone = ask(url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "gone.pem"))["exporter"]
        (tmp_path / "none.pem").write_text("no certificate")
        none = ask(url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "none.pem"))["exporter"]
    assert (none.status, "none.pem cannot be used" in none.detail) == ("FAIL", True)
    assert (unknown.status, known.status, gone.status) == ("FAIL", "ok", "FAIL")
    assert "TLS fails" in unknown.detail
    assert unknown.fix.startswith("export OTEL_EXPORTER_OTLP_CERTIFICATE=")
    assert "cannot be read: No such file" in gone.detail


@contextmanager
def grpc_collector(token: str = "") -> Iterator[str]:
    def export(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this collector needs a token")
        return b""

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(export)},
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def ask_grpc(endpoint: str, **environ: str) -> Check:
    exporter = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter.OTLPSpanExporter"
    processor = Processor("sdk.BatchSpanProcessor", exporter, endpoint, insecure=True)
    return only(reach.check_exporters(trial(processors=[processor]), environ))


def test_grpc() -> None:
    with grpc_collector(token="t") as endpoint:
        assert "UNAUTHENTICATED" in ask_grpc(endpoint).detail
        taken = ask_grpc(endpoint, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20t")
    assert taken.status == "warn"
    assert "4 MiB" in taken.detail
    away = ask_grpc("127.0.0.1:1")
    assert (away.status, "does not answer" in away.detail) == ("FAIL", True)


def test_exporters_that_send_nothing_away() -> None:
    console = Processor(
        "sdk.SimpleSpanProcessor", "opentelemetry.sdk.trace.export.ConsoleSpanExporter", "", None
    )
    assert "printed" in only(reach.check_exporters(trial(processors=[console]), {})).detail
    assert only(reach.check_exporters(trial(processors=[]), {})).fix == "unset OTEL_TRACES_EXPORTER"
    watching = Processor("spanloop_exporter.calls.claims.ClaimingProcessor", "", "", None)
    assert only(reach.check_exporters(trial(processors=[watching]), {})).status == "FAIL"
    vendor = Processor("vendor.VendorProcessor", "", "", None)
    assert only(reach.check_exporters(trial(processors=[vendor]), {})).status == "warn"


def test_a_clickhouse_server_that_is_away() -> None:
    ours = Processor(
        "spanloop_exporter.spooling.processor.SpanloopSpanProcessor",
        "spanloop_exporter.spooling.exporter.SpanloopSpanExporter",
        "",
        None,
    )
    environ = {"SPANLOOP_STORE": "clickhouse://u:hidden@127.0.0.1:1/otel"}
    check = only(reach.check_exporters(trial(processors=[ours]), environ))
    assert check.status == "FAIL"
    assert "127.0.0.1:1" in check.detail
    assert "hidden" not in str(check)


def test_a_clickhouse_server_with_and_without_tables(tmp_path: Path) -> None:
    with capture_process.running(tmp_path / "s") as capture:
        owner = read_owner(capture.url)
        assert owner is not None
        user = f"clickhouse://{owner.user}:{owner.password}@"
        url = capture.clickhouse.replace("http://", user) + "/default"
        assert reach.check_server(url).status == "ok"
        with closing(connect(capture.url)) as client:
            client.command("DROP TABLE ingest_segments")
            assert reach.check_server(url).status == "warn"
            client.command("CREATE TABLE ingest_segments (x UInt8) ENGINE = Memory")
            client.command("DROP TABLE otel_traces")
        gone = reach.check_server(url)
    assert (gone.status, "has no otel_traces" in gone.detail) == ("FAIL", True)
    assert owner.password not in str(gone)
