"""`spanloop up`: two children that come and go together, and one clear error when they cannot."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trustme
from tests.collector.capture_process import trace_request
from tests.helpers.stores import laid

from spanloop_store import connect, flush, read_owner

PORTS = ["--otlp-http-port", "0", "--otlp-grpc-port", "0", "--clickhouse-port", "0", "--gateway-port", "0"]


def arguments(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "spanloop.main", "up", "--store", f"chdb://{folder}", *PORTS, *more]


@contextlib.contextmanager
def up(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """On the store in this folder, or on a new one; stopped in the end."""
    if not (folder / "engine").exists():
        laid(folder)
    process = subprocess.Popen(
        arguments(folder, "--json", *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=90)


def healthy(address: str) -> bool:
    with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:
        return bool(answer.status == 200)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_up_serves_everything_and_stops_cleanly(tmp_path: Path) -> None:
    url = f"chdb://{tmp_path}"
    with up(tmp_path, "--upstream", "http://127.0.0.1:9/v1") as (process, addresses):
        owner = read_owner(url)
        assert owner is not None
        assert owner.gateway == addresses["gateway"]
        assert healthy(addresses["otlp_http"])
        assert healthy(addresses["gateway"])
        body = trace_request("up").SerializeToString()
        request = urllib.request.Request(
            f"{addresses['otlp_http']}/v1/traces", body, {"Content-Type": "application/x-protobuf"}
        )
        urllib.request.urlopen(request, timeout=30).close()
        flushed = flush(url)
        assert flushed is not None
        assert flushed.inserted == flushed.acknowledged == 1
        with contextlib.closing(connect(url)) as client:
            assert client.query("SELECT SpanName FROM otel_traces").result_rows == [("up",)]

        second = subprocess.run(arguments(tmp_path), capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert second.stderr.startswith("error: the store")
        assert f"process {owner.pid}" in second.stderr
        assert healthy(addresses["otlp_http"])

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert read_owner(url) is None
    assert not alive(owner.pid)
    with contextlib.closing(connect(url)) as client:
        assert client.query("SELECT SpanName FROM otel_traces").result_rows == [("up",)]


def test_up_says_what_to_set_and_what_is_redacted(tmp_path: Path) -> None:
    """On its first start, where there is no store yet."""
    process = subprocess.Popen(
        arguments(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "spanloop build" in line:
            break
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()
    text = "".join(lines)
    assert "Secrets that redaction knows are replaced" in text
    assert "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in text
    assert "export OPENAI_BASE_URL=http://127.0.0.1:" in text
    assert "opentelemetry-instrument python agent.py" in text


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    """The gateway's; those of capture are in test_capture.py and, by this command, in tests/cli/test_bad_input.py."""
    option = "--gateway-port"
    laid(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(arguments(tmp_path, option, port), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert second.startswith("next: ")
    assert option in second


def test_a_wrong_upstream_is_one_clear_error(tmp_path: Path) -> None:
    result = subprocess.run(
        arguments(tmp_path, "--upstream", "not-a-url"), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("error: --upstream 'not-a-url'")
    assert second.startswith("next: ")
    assert read_owner(f"chdb://{tmp_path}") is None


def test_an_address_of_another_machine_is_one_clear_error(tmp_path: Path) -> None:
    result = subprocess.run(
        arguments(tmp_path, "--host", "192.0.2.1"),  # RFC 5737: nobody's
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SPANLOOP_TOKEN": "t"},
    )
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert "192.0.2.1" in first
    assert second == "next:  192.0.2.1 is no address of this machine; use --host 127.0.0.1"


def test_a_child_that_dies_is_started_again_with_its_tls_and_its_log_folder(tmp_path: Path) -> None:
    """The gateway knows one address of the collector for ever: the plain one on loopback, beside TLS."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    files = {"cert": server.cert_chain_pems[0], "key": server.private_key_pem, "ca": authority.cert_pem}
    for name, blob in files.items():
        blob.write_to_path(str(tmp_path / name))
    context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    options = ["--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key")]
    options += ["--log", str(tmp_path / "elsewhere"), "--min-free", "1MB"]
    with up(tmp_path / "store", *options) as (process, addresses):
        owner = read_owner(f"chdb://{tmp_path}/store")
        assert owner is not None
        assert (tmp_path / "elsewhere" / "lock").exists()
        os.kill(owner.pid, signal.SIGKILL)
        assert process.stderr is not None
        for line in process.stderr:
            if "capture serves again" in line:
                break
        again = read_owner(f"chdb://{tmp_path}/store")
        assert again is not None
        assert again.pid != owner.pid
        assert healthy(addresses["gateway"])
        assert addresses["local"] == owner.otlp_http == again.otlp_http
        assert healthy(again.otlp_http)
        with urllib.request.urlopen(
            f"{addresses['otlp_http']}/metrics", timeout=10, context=context
        ) as answer:
            assert b"spanloop_disk_floor_bytes 1000000" in answer.read()


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    url = f"chdb://{tmp_path}"
    with up(tmp_path) as (process, _):
        owner = read_owner(url)
        assert owner is not None
        process.kill()
        process.wait(30)
        # The children hold the write end of its standard error: end of file says that both are gone.
        assert process.stderr is not None
        process.stderr.read()
        descriptor = os.pidfd_open(owner.pid) if alive(owner.pid) else None
        if descriptor is not None:
            # Not select(): the engine leaves descriptors behind whenever a path is opened again, beyond its 1,023.
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            assert poller.poll(60_000)
            os.close(descriptor)
    with contextlib.closing(connect(url)) as client:
        assert client.query("SELECT count() FROM otel_traces").result_rows == [(0,)]
