"""An embedded store, recorded spans and synthetic ones; rows go straight into `otel_traces`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from tests.helpers.stores import laid

from spanloop_store import connect
from spanloop_trainer.config import Config
from spanloop_trainer.transform import Manifest, build, load_dataset

RECORDINGS = Path(__file__).parents[2] / "fixtures" / "otlp"
Row = dict[str, Any]
Messages = list[dict[str, Any]]


def _text(value: dict[str, Any]) -> str:
    kind, inner = next(iter(value.items()), ("stringValue", ""))
    if kind == "boolValue":
        return "true" if inner else "false"
    if kind == "arrayValue":
        return json.dumps([next(iter(v.values())) for v in inner.get("values", [])])
    return str(inner)


def _map(attributes: list[dict[str, Any]]) -> dict[str, str]:
    return {attribute["key"]: _text(attribute["value"]) for attribute in attributes}


def recorded(*names: str) -> list[Row]:
    """Rows of recordings, by file name without suffix."""
    rows = []
    for name in names:
        for resource_spans in json.loads((RECORDINGS / f"{name}.json").read_text())["resourceSpans"]:
            resource = _map(resource_spans["resource"]["attributes"])
            for scope_spans in resource_spans["scopeSpans"]:
                rows += [_recorded(span, resource) for span in scope_spans["spans"]]
    return rows


def _recorded(span: dict[str, Any], resource: dict[str, str]) -> Row:
    start = int(span["startTimeUnixNano"])
    return {
        "Timestamp": start,
        "TraceId": span["traceId"],
        "SpanId": span["spanId"],
        "ParentSpanId": span.get("parentSpanId", ""),
        "SpanName": span["name"],
        "ServiceName": resource.get("service.name", ""),
        "ResourceAttributes": resource,
        "SpanAttributes": _map(span.get("attributes", [])),
        "Duration": int(span["endTimeUnixNano"]) - start,
        "StatusCode": ["Unset", "Ok", "Error"][span.get("status", {}).get("code", 0)],
        "StatusMessage": span.get("status", {}).get("message", ""),
    }


class Agent:
    """Makes the spans that a plain OpenAI loop leaves: every call its own root trace."""

    def __init__(self, instance: str = "i1", service: str = "agent", prefix: str = "") -> None:
        self.instance, self.service, self.prefix = instance, service, prefix
        self.count = 0

    def call(self, history: Messages, *answers: dict[str, Any], at: int, **attributes: str) -> Row:
        """One call at `at` seconds; no answer and no other attribute looks like a stream that was cut."""
        self.count += 1
        span = f"{self.prefix}{self.instance}-{self.count}"
        outputs = [{**answer, "finish_reason": "stop"} for answer in answers]
        values = {
            "gen_ai.operation.name": "chat",
            "gen_ai.response.model": "m",
            "gen_ai.input.messages": json.dumps(history),
            **(
                {"gen_ai.output.messages": json.dumps(outputs), "gen_ai.usage.output_tokens": "1"}
                if answers
                else {}
            ),
            "gen_ai.response.id": f"r-{span}",
            **attributes,
        }
        return {
            "Timestamp": 1_700_000_000_000_000_000 + at * 1_000_000_000,
            "TraceId": f"t-{span}",
            "SpanId": f"s-{span}",
            "ParentSpanId": "",
            "SpanName": "openai.chat",
            "ServiceName": self.service,
            "ResourceAttributes": {"service.instance.id": self.instance},
            "SpanAttributes": values,
            "Duration": 500_000_000,
            "StatusCode": "Error" if "error.type" in values else "Unset",
            "StatusMessage": "",
        }


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "parts": [{"type": "text", "content": text}]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "parts": [{"type": "text", "content": text}]}


def called(name: str, arguments: Any, call_id: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "parts": [{"type": "tool_call", "name": name, "id": call_id, "arguments": arguments}],
    }


def result(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": text}]}


def insert(client: Client, rows: Sequence[Row]) -> None:
    names = list(rows[0])
    client.insert("otel_traces", [[row[name] for name in names] for row in rows], column_names=names)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    opened = connect(laid(tmp_path / "store"))
    yield opened
    opened.close()


Build = Callable[..., tuple[Manifest, pl.DataFrame]]


@pytest.fixture
def build_rows(client: Client, tmp_path: Path) -> Build:
    """Replaces the store's spans by the rows given (None: leaves them) and builds."""

    def run(
        rows: Sequence[Row] | None, config: Config | None = None, **options: Any
    ) -> tuple[Manifest, pl.DataFrame]:
        if rows is not None:
            client.command("TRUNCATE TABLE otel_traces")
            insert(client, rows)
        build(client, tmp_path / "dataset", config=config or Config(), **options)
        return load_dataset(tmp_path / "dataset")

    return run
