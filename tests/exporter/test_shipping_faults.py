"""Targets and settings that misbehave: answers before the question is over, users in URLs, values that make no sense."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from tests.helpers.otlp_target import Said, Target
from tests.helpers.spooling import FLUSH_MS, RESOURCE, Provide, arrived_once, end

from spanloop_exporter import limits
from spanloop_exporter.limits import Preparation, mark
from spanloop_exporter.spooling.batches import Outcome
from spanloop_exporter.spooling.bounds import refused_in
from spanloop_exporter.spooling.processor import SpanloopLogProcessor
from spanloop_exporter.spooling.runs import segments_in
from spanloop_exporter.spooling.settings import read_settings
from spanloop_exporter.spooling.targets import OtlpTarget


@contextmanager
def hasty_server() -> Iterator[str]:
    """Says 413 as soon as it has seen the head of a request, and closes with a reset: it never reads the body."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head and (more := connection.recv(64)):
                        head += more
                    connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def test_an_answer_before_the_body_was_read_is_heard(provide: Provide, folder: Path) -> None:
    """Else a batch that a proxy finds too large is sent for ever, and all others wait behind it."""
    with hasty_server() as url:
        provider = provide(OTEL_EXPORTER_OTLP_ENDPOINT=url)
        end(provider, 1, size=12 << 20)  # more than the two socket buffers hold
        assert provider.force_flush(FLUSH_MS)
    (alone,) = refused_in(folder)
    assert Path(f"{alone}.reason.txt").read_text().startswith("HTTP 413")
    assert segments_in(folder) == []


def test_user_and_password_of_a_url_are_shown_to_the_server_alone(
    provide: Provide, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    target.answers.append(Said(401))
    provider = provide(OTEL_EXPORTER_OTLP_ENDPOINT=target.url.replace("//", "//me:p%40ss@"))
    ids = end(provider)
    assert not provider.force_flush(FLUSH_MS)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert target.requests[-1][1]["authorization"] == "Basic bWU6cEBzcw=="  # me:p@ss
    assert "401" in caplog.text
    assert "p%40ss" not in caplog.text


def test_a_proxy_gets_its_user_and_password(
    provide: Provide, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    target.answers.append(Said(200, taken=False))
    provider = provide(
        http_proxy=target.url.replace("//", "//me:p%40ss@"),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.example:4318",
    )
    end(provider)
    assert provider.force_flush(FLUSH_MS)
    ((path, headers, _),) = target.requests
    assert path == "http://collector.example:4318/v1/traces"
    assert (headers["proxy-authorization"], headers.get("authorization")) == ("Basic bWU6cEBzcw==", None)


@pytest.mark.parametrize("url", ["http://[::1", "127.0.0.1:4318", "http://host:port"])
def test_an_address_that_is_none_is_told_of_without_an_error(
    url: str, provide: Provide, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provide(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url)
    end(provider)
    assert not provider.force_flush(FLUSH_MS)
    assert len(segments_in(folder)) == 1
    assert url in caplog.text
    assert "did not foresee" not in caplog.text


def test_a_certificate_that_is_not_there_is_named() -> None:
    settings = read_settings(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem",
        }
    )
    (_, endpoint), _ = settings.endpoints
    from spanloop_exporter.spooling.batches import Batch
    from spanloop_store.otlp.signals import Signal

    answer = OtlpTarget(endpoint).send(Batch("traces", Signal.TRACES, b"\x02\x0a\x00", None, 1, again=False))
    assert answer.outcome is Outcome.LATER
    assert "/nowhere/ca.pem: No such file" in answer.reason


def test_a_store_url_that_is_none_keeps_the_spans(
    provide: Provide, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provide(SPANLOOP_STORE="clickhouse://user:hidden@host:port/db")
    end(provider, 2)
    assert not provider.force_flush(FLUSH_MS)
    assert len(segments_in(folder)) == 1
    assert "SPANLOOP_STORE" in caplog.text
    assert "hidden" not in caplog.text
    assert "did not foresee" not in caplog.text


def test_a_record_that_upstream_cannot_encode_is_sent_as_far_as_it_can_be(
    provide: Provide, target: Target
) -> None:
    provide()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SpanloopLogProcessor())
    logger = provider.get_logger("test")
    logger.emit(LogRecord(body="half \ud800 a pair", attributes={"why": "\ud83d"}))
    logger.emit(LogRecord(body={"huge": 1 << 70, "list": [1, "\ud83d"]}))
    assert provider.force_flush(FLUSH_MS)
    request = ExportLogsServiceRequest.FromString(target.requests[0][2])
    first, second = (
        record
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    )
    assert first.body.string_value == "half ? a pair"
    assert {pair.key: pair.value.string_value for pair in second.body.kvlist_value.values}["huge"] == str(
        1 << 70
    )
    provider.shutdown()


@pytest.mark.parametrize("text", ["-1", "0", "16 MB", "9" * 5000], ids=["-1", "0", "16 MB", "digits"])
def test_a_limit_that_is_none_is_told_and_not_followed(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Preparation({limits.VARIABLE: text}).max_bytes == limits.DEFAULT_MAX_BYTES
    assert limits.VARIABLE in caplog.text


@pytest.mark.parametrize("mine", [5, None, [1, "b"]], ids=str)
def test_an_agents_own_value_under_our_mark_costs_no_span(mine: object) -> None:
    assert "a" in mark({limits.CUT: mine}, ["a"])[limits.CUT]
