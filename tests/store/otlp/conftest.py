"""One embedded store for the decoders' tests: opening an engine costs more than the inserts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client
from tests.helpers.stores import laid

from spanloop_store import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(laid(tmp_path_factory.mktemp("store"))) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[Client]:
    client = engine.client()
    for table in ("otel_traces", "otel_traces_trace_id_ts", "otel_logs", "ingest_segments"):
        client.command(f"TRUNCATE TABLE {table}")
    yield client
    client.close()
