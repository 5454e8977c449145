"""What `spanloop up` prints can be pasted as it is, and fits a terminal."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import click
import pytest

from spanloop.commands.up import _welcome
from spanloop_collector.capture import Addresses

HERE = Addresses(
    pid=1,
    store="chdb:///data/spanloop",
    clickhouse="http://127.0.0.1:8123",
    otlp_http="http://127.0.0.1:4318",
    otlp_grpc="127.0.0.1:4317",
    gateway="http://127.0.0.1:8080",
)
EVERYWHERE = replace(
    HERE, otlp_http="http://0.0.0.0:4318", otlp_grpc="0.0.0.0:4317", gateway="http://0.0.0.0:8080"
)


def pasted(text: str) -> dict[str, str]:
    """The variables of a shell into which the indented lines were pasted."""
    lines = "\n".join(
        line for line in text.partition("For your agent")[2].splitlines() if line.startswith("  ")
    )
    command = ["bash", "--noprofile", "--norc", "-euc", f"{lines}\nenv -0"]
    given = {"PATH": "/usr/bin:/bin", "SPANLOOP_TOKEN": "s3cret"}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=True)
    found = dict(item.split("=", 1) for item in done.stdout.split("\0") if item)
    return {name: value for name, value in found.items() if name.startswith(("OTEL_", "OPENAI_"))}


def test_on_loopback() -> None:
    assert pasted(_welcome(HERE, "127.0.0.1", has_upstream=True)) == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "my-agent",
        "OPENAI_BASE_URL": "http://127.0.0.1:8080/v1",
    }


def test_without_an_upstream_the_agent_keeps_its_model_server() -> None:
    """The gateway would answer each of its calls with 404."""
    assert "OPENAI_BASE_URL" not in pasted(_welcome(HERE, "127.0.0.1", has_upstream=False))


def test_beyond_loopback_the_token_is_shown_and_the_address_is_one() -> None:
    found = pasted(_welcome(EVERYWHERE, "0.0.0.0", has_upstream=True))
    assert found["OTEL_EXPORTER_OTLP_HEADERS"] == "authorization=Bearer%20s3cret"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
    assert found["OPENAI_BASE_URL"] == "http://127.0.0.1:8080/v1"
    # The openai client sends this header beside its own key.
    assert found["OPENAI_CUSTOM_HEADERS"] == "x-spanloop-token: s3cret"


@pytest.mark.parametrize("has_upstream", [True, False])
def test_it_fits_80_columns(has_upstream: bool) -> None:
    addresses = replace(EVERYWHERE, store="chdb:///data")
    text = click.unstyle(_welcome(addresses, "0.0.0.0", has_upstream=has_upstream))
    assert [line for line in text.splitlines() if len(line) > 80] == []
