"""What the shipper does with each answer of a target: nothing is lost, nothing is doubled, and a flush tells the truth."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import trustme
from google.rpc.status_pb2 import Status
from opentelemetry._logs import LogRecord
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
)
from tests.helpers.otlp_target import Said, Target, otlp_target
from tests.helpers.spooling import FLUSH_MS, RESOURCE, Provide, arrived_once, end

from spanloop_exporter.spooling.bounds import read_account, refused_in
from spanloop_exporter.spooling.exporter import SpanloopLogExporter, SpanloopSpanExporter
from spanloop_exporter.spooling.memory import MemoryQueue
from spanloop_exporter.spooling.processor import SpanloopLogProcessor, SpanloopSpanProcessor
from spanloop_exporter.spooling.runs import segments_in
from spanloop_exporter.spooling.settings import read_settings
from spanloop_exporter.spooling.shipping import Shipper
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal


def test_a_flush_says_true_when_everything_is_there(provide: Provide, target: Target, folder: Path) -> None:
    provider = provide()
    assert provider.force_flush(FLUSH_MS)  # nothing was written yet
    ids = end(provider, 30)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    ((path, headers, _),) = target.requests
    assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    assert segments_in(folder) == []


def test_spans_of_one_agent_share_their_resource_on_the_wire(provide: Provide, target: Target) -> None:
    provider = provide()
    end(provider, 30)
    assert provider.force_flush(FLUSH_MS)
    request = ExportTraceServiceRequest.FromString(target.requests[0][2])
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    assert len(scope.spans) == 30
    assert resource.resource.attributes[0].value.string_value == "agent"


def test_a_target_that_is_away_is_told_of_and_gets_it_later(
    provide: Provide, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    provider = provide(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    ids = end(provider, 5)
    assert not provider.force_flush(FLUSH_MS)
    assert not provider.force_flush(FLUSH_MS)
    ids += end(provider, 5)
    warnings = [record for record in caplog.records if "Connection refused" in record.getMessage()]
    assert len(warnings) == 1
    assert str(folder) in warnings[0].getMessage()
    with otlp_target(port) as target:
        assert provider.force_flush(FLUSH_MS)
        assert arrived_once(target, ids)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_waited_for_and_the_same_bytes_come_again(
    status: int, provide: Provide, target: Target
) -> None:
    provider = provide()
    target.answers.append(Said(status, (("Retry-After", "0"),)))
    ids = end(provider, 3)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    first, second = target.requests
    assert first == second


def test_a_flush_does_not_wait_for_a_retry_after_beyond_its_time(provide: Provide, target: Target) -> None:
    provider = provide()
    target.answers.append(Said(503, (("Retry-After", "3000"),)))
    ids = end(provider, 3)
    assert not provider.force_flush(FLUSH_MS)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)


def test_without_a_flush_the_shipper_comes_back_by_itself(provide: Provide, target: Target) -> None:
    provider = provide(OTEL_BSP_SCHEDULE_DELAY="10")
    target.answers += [Said(503, (("Retry-After", "0.01"),)), Said(429, (("Retry-After", "0"),)), Said(503)]
    ids = end(provider, 3)
    target.wait(lambda target: len(target.requests) >= 4)
    ids += end(provider, 3)
    target.wait(lambda target: len(target.spans) == 6)
    assert arrived_once(target, ids)


def test_an_answer_that_got_lost_is_no_second_span(provide: Provide, target: Target) -> None:
    provider = provide()
    target.answers.append(Said(503, (("Retry-After", "0"),), taken=True))
    ids = end(provider, 10)
    assert provider.force_flush(FLUSH_MS)
    assert target.repeats == 1
    assert arrived_once(target, ids)


def test_what_is_refused_for_good_is_kept_aside_with_the_reason(
    provide: Provide, target: Target, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provide()
    status = Status(code=3, message="span 3 is wrong").SerializeToString()
    for _ in range(2):
        target.answers.append(Said(400, (("content-type", "application/x-protobuf"),), status))
        end(provider, 4)
        assert provider.force_flush(FLUSH_MS)  # there is nothing left to wait for
    ids = end(provider)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    first, second = refused_in(folder)
    assert len(list(frames(first.read_bytes()))) == 4
    assert Path(f"{second}.reason.txt").read_text() == "HTTP 400 span 3 is wrong\n"
    assert sum("span 3 is wrong" in record.getMessage() for record in caplog.records) == 1
    assert read_account(folder).refused == 8


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_a_wrong_address_or_token_keeps_the_spans(
    status: int, provide: Provide, target: Target, folder: Path
) -> None:
    provider = provide()
    target.answers.append(Said(status, (("location", "https://elsewhere"),)))
    ids = end(provider)
    assert not provider.force_flush(FLUSH_MS)
    assert refused_in(folder) == []
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)


def test_a_request_that_is_too_large_is_halved_until_it_fits(
    provide: Provide, target: Target, folder: Path
) -> None:
    provider = provide()
    target.judge = lambda body: Said(413) if len(body) > 10_000 else None
    ids = end(provider, 24, size=1500)
    (huge,) = end(provider, 1, size=20_000)
    ids += end(provider, 7, size=1500)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    (alone,) = refused_in(folder)
    assert huge.encode() in alone.read_bytes().hex().encode()
    assert Path(f"{alone}.reason.txt").read_text().startswith("HTTP 413")


def in_pieces(limit: int, *, taken: bool = False) -> Callable[[bytes], Said | None]:
    """Takes bodies of up to so many bytes; the second of those it answers with "later", whether or not it took it."""
    fitting = count(1)

    def judge(body: bytes) -> Said | None:
        if len(body) > limit:
            return Said(413)
        return Said(503, (("Retry-After", "3000"),), taken=taken) if next(fitting) == 2 else None

    return judge


def test_pieces_that_arrived_are_not_sent_again_by_the_next_process(
    provide: Provide, target: Target, folder: Path
) -> None:
    provider = provide()
    ids = end(provider, 8, size=1500)
    target.judge = in_pieces(7000)
    assert not provider.force_flush(FLUSH_MS)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert target.repeats == 0


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_a_piece_whose_answer_got_lost_is_the_same_piece_again(
    dies: bool, provide: Provide, target: Target, folder: Path
) -> None:
    """Eight spans go as 2 + 2 + 4, since four are too large; of the second piece nobody hears that it arrived."""
    provider = provide()
    ids = end(provider, 8, size=1500)
    target.judge = in_pieces(4000, taken=True)
    assert not provider.force_flush(FLUSH_MS)
    if dies:
        provider.shutdown()
        provider = provide(OTEL_EXPORTER_OTLP_TIMEOUT="9")  # other settings: a pipeline of its own
        ids += end(provider)
        provider.shutdown()
    else:
        assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert target.repeats == 1
    assert segments_in(folder) == []


def test_partial_success_is_told_and_counted_and_not_sent_again(
    provide: Provide, target: Target, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provide()
    body = ExportTraceServiceResponse()
    body.partial_success.rejected_spans = 2
    body.partial_success.error_message = "2 with a span id of zeros"
    target.answers.append(Said(200, (("content-type", "application/x-protobuf"),), body.SerializeToString()))
    end(provider, 5)
    assert provider.force_flush(FLUSH_MS)
    assert len(target.requests) == 1
    assert read_account(folder).refused == 2
    assert "2 with a span id of zeros" in caplog.text


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_standard_variables_are_followed(compression: str, provide: Provide, target: Target) -> None:
    provider = provide(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{target.url}/v1/traces",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20token,x-tenant=a",
        OTEL_EXPORTER_OTLP_TRACES_COMPRESSION=compression,
    )
    ids = end(provider, 40)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    ((_, headers, _),) = target.requests
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer token", "a")
    assert headers.get("content-encoding", "none") == compression


def test_tls_by_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    files = {"server": authority.cert_pem, "mine": (mine := clients.issue_cert("agent")).cert_chain_pems[0]}
    files["key"] = mine.private_key_pem
    for name, blob in files.items():
        blob.write_to_path(tmp_path / name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    clients.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with otlp_target(tls=context) as target:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", target.url)

        def delivered() -> bool:
            provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
            provider.add_span_processor(SpanloopSpanProcessor())
            end(provider)
            return provider.force_flush(FLUSH_MS)

        assert not delivered()  # signed by nobody that the system knows
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "server"))
        assert not delivered()  # the server wants to know who we are
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(tmp_path / "mine"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(tmp_path / "key"))
        assert delivered()


def test_prompts_of_100_kb_come_whole(provide: Provide, target: Target) -> None:
    provider = provide()
    ids = end(provider, 60, size=100_000)  # more than one segment
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert len(target.requests) == 2
    assert all(len(body) < 5 << 20 for _, _, body in target.requests)


def test_without_a_disk_spans_go_by_memory(
    provide: Provide, target: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    provider = provide(SPANLOOP_SPOOL=str(tmp_path / "file" / "spool"))
    target.answers.append(Said(503, (("Retry-After", "0"),)))
    ids = end(provider, 5)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert target.requests[0] == target.requests[1]
    assert sum("spool cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_memory_is_bounded_and_drops_the_oldest() -> None:
    memory = MemoryQueue(max_bytes=1000)
    dropped = sum(memory.put(Signal.TRACES, [b"%03d" % number + b"x" * 97]) for number in range(20))
    batch = memory.batch(Signal.TRACES)
    assert batch is not None
    assert [bytes(item.payload[:3]) for item in frames(batch.data)] == [
        b"%03d" % n for n in range(dropped, 20)
    ]
    assert len(batch.data) <= 1000
    again = memory.batch(Signal.TRACES)
    assert again is not None
    assert (again.name, again.data, again.again) == (batch.name, batch.data, True)
    memory.remove(batch)
    assert memory.batch(Signal.TRACES) is None
    assert len(memory) == 0


def test_a_shutdown_leaves_the_rest_to_the_next_process(
    provide: Provide, target: Target, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = provide(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    ids = end(away, 7)
    away.shutdown()
    assert f"7 spans stay in {folder}" in caplog.text
    next_one = provide(OTEL_EXPORTER_OTLP_ENDPOINT=target.url)
    ids += end(next_one, 2)
    next_one.shutdown()
    assert arrived_once(target, ids)
    assert segments_in(folder) == []


@pytest.mark.parametrize("kind", [BatchSpanProcessor, SimpleSpanProcessor])
def test_the_sdks_own_processors_do_too(kind: type, provide: Provide, target: Target) -> None:
    provide()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(kind(SpanloopSpanExporter()))
    ids = end(provider, 12)
    provider.shutdown()
    assert arrived_once(target, ids)


def test_unsampled_spans_stay_out(provide: Provide, target: Target) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    provider = provide()
    provider.sampler = ALWAYS_OFF
    end(provider, 3)
    assert provider.force_flush(FLUSH_MS)
    assert not target.requests


def test_log_records_take_the_same_way(provide: Provide, target: Target) -> None:
    provide()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SpanloopLogProcessor())
    for number in range(3):
        provider.get_logger("test").emit(
            LogRecord(body=f"reward {number}", event_name="gen_ai.evaluation.result")
        )
    assert provider.force_flush(FLUSH_MS)
    assert target.records == {"reward 0": 1, "reward 1": 1, "reward 2": 1}
    assert {path for path, _, _ in target.requests} == {"/v1/logs"}
    provider.shutdown()


def test_one_signals_trouble_is_not_the_others(provide: Provide, target: Target) -> None:
    tracers = provide(OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="http://127.0.0.1:1/v1/logs")
    loggers = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    exporter = SpanloopLogExporter()
    loggers.add_log_record_processor(SpanloopLogProcessor(exporter))
    loggers.get_logger("test").emit(LogRecord(body="reward"))
    assert not loggers.force_flush(FLUSH_MS)
    ids = end(tracers, 2)
    assert tracers.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)


def test_threads_share_one_spool(provide: Provide, target: Target) -> None:
    provider = provide(OTEL_BSP_SCHEDULE_DELAY="5")
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend(end(provider, 50, size=2000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert len(ids) == 400


def test_stamps_and_marks_are_applied(provide: Provide, target: Target) -> None:
    provider = provide(SPANLOOP_RUN_ID="run-7", SPANLOOP_MAX_ATTRIBUTE_BYTES="50")
    end(provider, size=200)
    assert provider.force_flush(FLUSH_MS)
    request = ExportTraceServiceRequest.FromString(target.requests[0][2])
    found = {pair.key: pair.value for pair in request.resource_spans[0].scope_spans[0].spans[0].attributes}
    assert found["spanloop.run.id"].string_value == "run-7"
    assert found["text"].string_value == "x" * 50
    assert [item.string_value for item in found["spanloop.cut"].array_value.values] == ["text"]


@pytest.mark.parametrize("with_spool", [True, False])
def test_an_idle_shipper_sleeps(with_spool: bool, folder: Path) -> None:
    spool = Spool(folder, max_bytes=1 << 20, max_age_s=60, overflow=lambda *_: None) if with_spool else None
    shipper = Shipper(spool, MemoryQueue(), lambda signal: pytest.fail("nothing is to be sent"), delay_s=1)
    due = shipper._step(0.0)
    assert due is not None
    assert due > time.monotonic() + 1


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SPANLOOP_SPOOL_MAX_BYTES", "a lot"),
        ("SPANLOOP_SPOOL_MAX_AGE_S", "-1"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_and_not_followed(
    variable: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_settings({"SPANLOOP_SPOOL": "/x", variable: text}) == read_settings({"SPANLOOP_SPOOL": "/x"})
    assert variable in caplog.text
