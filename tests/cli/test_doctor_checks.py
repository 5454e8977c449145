"""Each check of `spanloop doctor` by itself, against real servers, folders and metadata of installed packages."""

from __future__ import annotations

import os
import re
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
from tests.cli.test_doctor import install
from tests.collector import capture_process
from tests.helpers.openai_stub import serve_app

from spanloop.doctor import captured, installed, reach, settings, spool, store, versions
from spanloop.doctor.check import Check
from spanloop.doctor.trial import Call, Instrumentor, Library, Processor, SpanFacts, Trial
from spanloop_exporter.segments import SegmentLog
from spanloop_exporter.spooling.bounds import FULL, Bookkeeper
from spanloop_exporter.spooling.settings import Endpoint
from spanloop_exporter.spooling.targets import OtlpTarget
from spanloop_store import connect, read_owner
from spanloop_store.otlp.signals import Signal

GOOD = {
    "opentelemetry-sdk": "1.45.1",
    "opentelemetry-instrumentation": "0.66b1",
    "opentelemetry-distro": "0.66b1",
}


CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


def only(checks: Iterator[Check]) -> Check:
    (check,) = list(checks)
    return check


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# ---- what is installed


@pytest.mark.parametrize(
    ("sdk", "instrumentation", "distro", "status"),
    [
        ("1.45.1", "0.66b1", "0.66b1", "ok"),
        ("1.45.2", "0.66b2", "0.66b1", "ok"),
        ("1.27.0", "0.48b0", "0.48b0", "ok"),
        ("1.45.1", "0.66b1", "0.48b0", "FAIL"),
        ("1.45.1", "0.65b0", "0.65b0", "FAIL"),
    ],
)
def test_a_release_train(sdk: str, instrumentation: str, distro: str, status: str) -> None:
    names = dict(zip(versions.TRAIN, (sdk, instrumentation, distro), strict=True))
    check = versions.check_train(names)
    assert check.status == status
    assert ("opentelemetry-distro" in check.fix) is (status == "FAIL")


def test_a_part_of_the_train_that_is_missing() -> None:
    check = versions.check_train({"opentelemetry-sdk": "1.45.1"})
    assert check.status == "FAIL"
    assert "opentelemetry-instrumentation, opentelemetry-distro not installed" in check.detail


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"opentelemetry-instrumentation": "0.48b0"}, "pkg_resources"),
        ({"opentelemetry-instrumentation": "0.48b0", "setuptools": "83.0"}, "pkg_resources"),
        ({"opentelemetry-instrumentation": "0.48b0", "setuptools": "75.0"}, ""),
        ({"opentelemetry-instrumentation-openai": "0.47.5", "opentelemetry-api": "1.45.1"}, "_events"),
        ({"opentelemetry-instrumentation-openai": "0.47.5", "opentelemetry-api": "1.43.0"}, ""),
        ({"opentelemetry-instrumentation-langchain": "0.60.0", "wrapt": "2.1"}, "stops every other"),
        ({"opentelemetry-instrumentation-langchain": "0.62.4", "wrapt": "2.1"}, ""),
    ],
)
def test_pairs_known_to_fail(found: dict[str, str], why: str) -> None:
    check = only(versions.check_pairs(GOOD | {"wrapt": "2.5"} | found))
    assert check.status == ("FAIL" if why else "ok")
    assert why in check.detail
    assert check.fix.startswith("pip install --upgrade ") is bool(why)


def test_a_requirement_that_is_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "langchain-elsewhere",
        "1.5.0",
        {},
        "opentelemetry-api>=9",
        "nowhere-to-be-found",
        "x; extra == 'y'",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    unmet = list(versions.check_requirements(versions.installed_versions()))
    assert [check.status for check in unmet] == ["warn", "warn"]
    assert "needs opentelemetry-api>=9, and 1." in unmet[0].detail
    assert "needs nowhere-to-be-found, and nothing is installed" in unmet[1].detail
    assert "'opentelemetry-api>=9'" in unmet[0].fix


def test_this_environment_has_what_it_asks_for() -> None:
    found = versions.installed_versions()
    checks = [*versions.check_requirements(found), *versions.check_pairs(found), versions.check_train(found)]
    assert [check.status for check in checks] == ["ok", "ok", "ok"]


def test_two_instrumentors_of_one_library_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"opentelemetry_instrumentor": "openai_v9 = somewhere:Instrumentor"}
    install(
        tmp_path,
        "opentelemetry-instrumentation-openai-v9",
        "2.0",
        points,
        'openai>=1; extra == "instruments"',
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check = only(installed.check_conflicts({}))
    assert check.status == "FAIL"
    assert "both instrument library openai" in check.detail
    assert check.fix == "pip uninstall --yes opentelemetry-instrumentation-openai-v9"
    # Turned off, it fights no more.
    environ = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai_v9"}
    assert only(installed.check_conflicts(environ)).status == "ok"


def test_a_second_distro_and_a_second_configurator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"opentelemetry_distro": "vendor = v:D", "opentelemetry_configurator": "vendor = v:C"}
    install(tmp_path, "vendor-distro", "1.0", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    distro = only(installed.check_distro({}))
    assert distro.status == "warn"
    assert "vendor (vendor-distro)" in distro.detail
    assert distro.fix == "export OTEL_PYTHON_DISTRO=spanloop"
    assert only(installed.check_distro({"OTEL_PYTHON_DISTRO": "spanloop"})).status == "ok"
    assert only(installed.check_distro({"OTEL_PYTHON_DISTRO": "gone"})).status == "FAIL"
    configurator = only(installed.check_configurator({}))
    assert configurator.status == "warn"
    name, value = configurator.fix.removeprefix("export ").split("=")
    assert only(installed.check_configurator({name: value})).status == "ok"
    assert only(installed.check_configurator({name: "gone"})).status == "FAIL"


# ---- what the trial shows


def span(**facts: object) -> SpanFacts:
    keys = ["gen_ai.input.messages"]
    defaults = {
        "name": "chat",
        "scope": "s",
        "keys": keys,
        "prompt_in": keys,
        "whole_in": keys,
        "model_call": True,
    }
    return SpanFacts(**{**defaults, **facts})  # type: ignore[arg-type]  # by name


def trial(*spans: SpanFacts, **more: object) -> Trial:
    libraries = {"openai": Library("3.52.0", {"chat completion": Call("", list(spans))})}
    return Trial(sdk=True, libraries=libraries, **more)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("spans", "environ", "status", "detail", "fix"),
    [
        ([span()], {}, "ok", "whole messages", ""),
        ([span(whole_in=[])], {}, "FAIL", "cut", "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
        ([span(prompt_in=[], whole_in=[])], {}, "FAIL", "no messages", "export TRACELOOP_TRACE_CONTENT=true"),
        (
            [span(prompt_in=[], whole_in=[])],
            {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "NO_CONTENT"},
            "FAIL",
            "no messages",
            "unset OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        ),
        (
            [span()],
            {"OPENINFERENCE_HIDE_INPUTS": "true"},
            "warn",
            "for some",
            "unset OPENINFERENCE_HIDE_INPUTS",
        ),
        ([], {}, "warn", "not known", "pip install openai"),
    ],
    ids=["whole", "cut", "blind", "blind by a variable", "hidden by the other family", "nothing called"],
)
def test_content(spans: list[SpanFacts], environ: dict[str, str], status: str, detail: str, fix: str) -> None:
    check = captured.check_content(trial(*spans), environ)
    assert (check.status, detail in check.detail) == (status, True)
    assert check.fix.startswith(fix)


def test_token_ids_that_are_asked_for_are_recorded() -> None:
    asked = {"SPANLOOP_CAPTURE_TOKENS": "true"}
    assert captured.check_tokens(trial(span()), {}).status == "ok"
    assert captured.check_tokens(trial(span()), asked).status == "FAIL"
    # The exporter takes this for a yes as well.
    assert captured.check_tokens(trial(span()), {"SPANLOOP_CAPTURE_TOKENS": "Yes"}).status == "FAIL"
    assert captured.check_tokens(trial(span(keys=["spanloop.completion_token_ids"])), asked).status == "ok"


def instrumentor(**more: object) -> Instrumentor:
    defaults = {
        "name": "openai", "value": "m:C", "distribution": "some-instrumentation", "active": False,
        "error": "", "missing": False, "conflict": "",
    }  # fmt: skip
    return Instrumentor(**{**defaults, **more})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("instrumentors", "sampler", "environ", "detail", "fix"),
    [
        (
            [],
            "",
            {},
            "no instrumentor for it is installed",
            "pip install opentelemetry-instrumentation-openai",
        ),
        (
            [instrumentor(error="ImportError: gone")],
            "",
            {},
            "ImportError: gone",
            "pip install --upgrade some-",
        ),
        (
            [instrumentor(conflict="does not instrument openai 9.0")],
            "",
            {},
            "does not instrument openai 9.0",
            "pip install --upgrade some-instrumentation",
        ),
        (
            [instrumentor()],
            "",
            {"OTEL_SDK_DISABLED": "TRUE"},
            "turns everything off",
            "unset OTEL_SDK_DISABLED",
        ),
        ([instrumentor()], "AlwaysOffSampler", {}, "drops every span", "unset OTEL_TRACES_SAMPLER"),
        ([instrumentor()], "", {}, "the last complaint", "pip install --upgrade some-instrumentation"),
    ],
    ids=["none", "import error", "wrong version", "SDK off", "sampler", "who knows"],
)
def test_why_a_call_leaves_no_span(
    instrumentors: list[Instrumentor], sampler: str, environ: dict[str, str], detail: str, fix: str
) -> None:
    silent = trial(instrumentors=instrumentors, sampler=sampler)
    check = by_name(captured.check_libraries(silent, "the last complaint", environ))["openai"]
    assert check.status == "FAIL"
    assert detail in check.detail
    assert check.fix.startswith(fix)


@pytest.mark.parametrize(
    ("sampler", "status"),
    [
        ("ParentBased{root:AlwaysOnSampler,remoteParentSampled:AlwaysOnSampler}", "ok"),
        ("AlwaysOnSampler", "ok"),
        ("ParentBased{root:AlwaysOffSampler,remoteParentSampled:AlwaysOnSampler}", "FAIL"),
        ("ParentBased{root:TraceIdRatioBased{0.25},remoteParentSampled:AlwaysOnSampler}", "warn"),
        ("TraceIdRatioBased{0.0}", "FAIL"),
        ("TraceIdRatioBased{1.0}", "ok"),
    ],
)
def test_sampler(sampler: str, status: str) -> None:
    assert settings.check_sampler(trial(sampler=sampler)).status == status


def test_limits() -> None:
    assert settings.check_limits(trial(max_attributes=4096, max_events=128)).status == "ok"
    assert settings.check_limits(trial(max_attributes=None, max_events=None)).status == "ok"
    assert settings.check_limits(trial(max_attributes=500, max_events=128)).status == "warn"
    cut = settings.check_limits(trial(max_attributes=4096, max_length=4000))
    assert (cut.status, "4000 characters" in cut.detail) == ("FAIL", True)
    assert settings.check_limits(trial(max_events=10)).fix == "unset OTEL_SPAN_EVENT_COUNT_LIMIT"


def test_queue_propagation_and_numbers() -> None:
    assert settings.check_queue({}).status == "ok"
    assert settings.check_queue({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}).fix == "unset OTEL_BSP_MAX_QUEUE_SIZE"
    assert settings.check_queue({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2000"}).status == "warn"
    sent = trial(propagates=["traceparent"])
    assert settings.check_propagation(sent, {}).status == "ok"
    joined = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}
    assert "joined" in settings.check_propagation(sent, joined).detail
    assert settings.check_propagation(sent, {"TRACEPARENT": f"00-{'0' * 32}-{'b' * 16}-01"}).status == "warn"
    assert (
        only(settings.check_values({"SPANLOOP_SPOOL_MAX_AGE_S": "-1"})).fix
        == "unset SPANLOOP_SPOOL_MAX_AGE_S"
    )
    assert (
        list(settings.check_values({"SPANLOOP_SPOOL_MAX_AGE_S": "60", "SPANLOOP_CAPTURE_TOKENS": "Yes"}))
        == []
    )
    flag = only(settings.check_values({"SPANLOOP_CAPTURE_TOKENS": "ture"}))
    assert (flag.status, flag.fix) == ("warn", "export SPANLOOP_CAPTURE_TOKENS=true")
    assert settings.check_disabled({"OTEL_SDK_DISABLED": "true"}).fix == "unset OTEL_SDK_DISABLED"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTEL_TRACE_EXPORTER", "OTEL_TRACES_EXPORTER"),
        ("OTEL_EXPORTER_OTLP_ENPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("OTEL_SERVICENAME", "OTEL_SERVICE_NAME"),
        ("OTEL_PYTHON_DISABLED_INSTRUMENTATION", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"),
        ("SPANLOOP_CAPTURE_TOKEN", "SPANLOOP_CAPTURE_TOKENS"),
        ("SPANLOOP_SPOL", "SPANLOOP_SPOOL"),
    ],
)
def test_a_variable_that_is_misspelt(name: str, meant: str) -> None:
    check = only(settings.check_names({name: "secret", "PATH": "/bin"}))
    assert (check.status, check.fix) == ("warn", f'export {meant}="${name}"; unset {name}')
    assert "secret" not in str(check)


def test_variables_that_are_not_misspelt() -> None:
    described = re.findall(
        r"^\| `(SPANLOOP_\w+)` \|", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE
    )
    # Of other programs: of Grafana, of other instrumentations, of a signal that is not in the SDK yet.
    foreign = ["SPANLOOP_READER_USER", "SPANLOOP_DASHBOARDS", "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS"]
    foreign += ["OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"]
    assert list(settings.check_names(dict.fromkeys([*described, *foreign], "x"))) == []
    assert set(described) == settings._OURS


# ---- the way out


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
    with serve_app(app) as url:
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


# ---- the spool and the store


def test_an_empty_spool_is_well_and_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "spool"
    assert only(spool.check_spool({"SPANLOOP_SPOOL": str(folder)})).status == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/1").exists(), reason="needs a folder that nobody may write to"
)
def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "spool", Path("/proc/1/spool")):
        check = only(spool.check_spool({"SPANLOOP_SPOOL": str(place)}))
        assert (check.status, "cannot be written" in check.detail) == ("FAIL", True)
    assert check.fix.startswith("export SPANLOOP_SPOOL=")


def test_what_a_dead_process_left_and_what_was_dropped_is_told(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    log.append([b"\x0a\x00"], items=1)
    log.close()
    Bookkeeper(tmp_path).dropped(FULL, 12, "some segment")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "traces-1-2-00000001.otlp").write_bytes(b"x")
    checks = by_name(spool.check_spool({"SPANLOOP_SPOOL": str(tmp_path)}))
    assert {name: check.status for name, check in checks.items()} == {
        "spool": "ok",
        "spool left behind": "warn",
        "spool dropped": "warn",
        "spool refused": "warn",
    }
    assert "1 segment(s) of processes that are gone" in checks["spool left behind"].detail
    assert checks["spool left behind"].fix == f"spanloop import {tmp_path}"
    assert "12 over SPANLOOP_SPOOL_MAX_BYTES" in checks["spool dropped"].detail


def test_a_spool_larger_than_its_disk(tmp_path: Path) -> None:
    environ = {"SPANLOOP_SPOOL": str(tmp_path), "SPANLOOP_SPOOL_MAX_BYTES": str(1 << 60)}
    check = only(spool.check_spool(environ))
    assert (check.status, "free on its disk" in check.detail) == ("warn", True)
    name, value = check.fix.removeprefix("export ").split("=")
    assert only(spool.check_spool(environ | {name: value})).status == "ok"


def test_stores(tmp_path: Path) -> None:
    assert store.check_store("mysql://x/y").status == "FAIL"
    assert store.check_store(f"chdb://{tmp_path}/s").fix == f"spanloop up --store chdb://{tmp_path}/s"
    # What takes the spans has a store of its own: a second `up` would be the wrong advice.
    assert store.check_store(f"chdb://{tmp_path}/s", collected=True).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_redaction_runs_is_off_or_stops_the_export(tmp_path: Path) -> None:
    assert settings.check_redaction({}).status == "ok"
    assert settings.check_redaction({"SPANLOOP_REDACTION": "off"}).status == "warn"
    check = settings.check_redaction({"SPANLOOP_REDACTION": str(tmp_path / "missing.toml")})
    assert check.status == "FAIL"
    assert "no span leaves" in check.detail
    assert "missing.toml" in check.detail
    assert check.fix
