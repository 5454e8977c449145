"""Reads what `build` needs from the store: projected SQL in, Polars frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any, NamedTuple

import polars as pl
from clickhouse_connect.driver.exceptions import ClickHouseError

from spanloop_store.erase import erased_traces
from spanloop_store.errors import StoreUnavailable
from spanloop_trainer.transform.flavours import MODEL_OPERATIONS, Flavour, flavours

# DateTime64(9) counts nanoseconds in a signed 64-bit integer: the last instant is in April 2262.
END_OF_TIME_NS = 2**63 - 1 - 60_000_000_000

# Of attributes, where the store does not tell.
_BYTES_A_SPAN = 2000


@dataclass(frozen=True)
class Window:
    """Which spans a dataset is made from.

    Attributes:
        since, until: half-open interval of span starts; None means open. Naive times are UTC.
        services: `service.name` of the agents; empty means all.
        shard, shards: only traces whose `cityHash64(TraceId)` modulo `shards` is `shard`.
        slice: a part of it that is read by itself, [since, until) in nanoseconds since 1970; None: all.
    """

    since: datetime | None = None
    until: datetime | None = None
    services: tuple[str, ...] = ()
    shard: int = 0
    shards: int = 1
    slice: tuple[int, int] | None = None

    @classmethod
    def of_query(cls, query: Mapping[str, Any]) -> Window:
        """The window that a manifest's `query` names."""
        since, until = (
            query.get(name) and _utc(datetime.fromisoformat(query[name])) for name in ("since", "until")
        )
        return cls(since, until, tuple(query.get("services", ())))

    def bounds(self) -> tuple[int, int]:
        """First start and the end, exclusive, in nanoseconds since 1970."""
        if self.slice is not None:
            return self.slice
        # What lies beyond the store's time lies at its end: 64 bits of nanoseconds would begin again there.
        since, until = (
            end if moment is None else min(max(_nanoseconds(moment), 0), END_OF_TIME_NS)
            for moment, end in ((self.since, 0), (self.until, END_OF_TIME_NS))
        )
        return since, until

    def parameters(self) -> dict[str, Any]:
        """Query parameters; times in nanoseconds since 1970."""
        since, until = self.bounds()
        return {
            "since": since,
            "until": until,
            "services": list(self.services),
            "shard": self.shard,
            "shards": self.shards,
        }

    def __str__(self) -> str:
        since = self.since.isoformat() if self.since else "the beginning"
        until = self.until.isoformat() if self.until else "now"
        return f"{since} to {until}" + (f", services {', '.join(self.services)}" if self.services else "")


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _nanoseconds(moment: datetime) -> int:
    moment = _utc(moment)
    # Through whole microseconds: a float of seconds has no room for them.
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400_000_000 + delta.seconds * 1_000_000 + delta.microseconds) * 1000


@dataclass(frozen=True)
class Spans:
    """Everything that was read; row order means nothing."""

    calls: pl.DataFrame  # one row a model call, with its flavour's raw messages
    gateway: pl.DataFrame  # one row a gateway span
    ancestors: pl.DataFrame  # skeleton of the traces in which calls have parents
    counts: dict[
        str, int
    ]  # in the window: spans, gateway, model_calls; rows_again: of spans that were there already


def _sql(name: str, **parts: str) -> str:
    """A query, with SQL in the places of its comments."""
    text = resources.files("spanloop_trainer.transform.reading").joinpath("sql", name).read_text()
    for place, sql in parts.items():
        text = text.replace(f"/* {place} */", sql)
    return text


def _once(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a span. A sender that saw no answer sends its spans again, and `otel_traces` then has them twice.

    Copies are equal as a rule; where they are not, the earliest stays, and the same one in every run.
    """
    keys = ("trace_id", "span_id")
    if frame.select(keys).n_unique() == frame.height:
        return frame
    content = pl.struct(pl.exclude(keys)).hash(seed=0)
    return (
        frame.with_columns(content.alias("content_hash"))
        .sort(*keys, *(["start"] if "start" in frame.columns else []), "content_hash")
        .unique(keys, keep="first", maintain_order=True)
        .drop("content_hash")
    )


def _frame(client: Any, sql: str, parameters: dict[str, Any] | None = None) -> pl.DataFrame:
    try:
        table = client.query_arrow(sql, parameters=parameters)
    except ClickHouseError as error:
        raise _no_answer(error) from error
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _no_answer(error: ClickHouseError) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store did not answer a query: {str(error).splitlines()[0]}",
        "run `spanloop doctor`; no data was changed",
    )


def _recognise(flavour: Flavour, earlier: Sequence[Flavour]) -> str:
    return " AND NOT ".join([f"({flavour.recognise})", *(f"({other.recognise})" for other in earlier)])


def _calls(
    client: Any, flavour: Flavour, earlier: Sequence[Flavour], parameters: dict[str, Any]
) -> pl.DataFrame:
    sql = _sql(
        "calls.sql",
        session=_sql("session.sql"),
        recognise=_recognise(flavour, earlier),
        columns=flavour.select_list(),
        spans=flavour.spans(),
        joined=flavour.joined,
    )
    frame = _once(_frame(client, sql, parameters))
    flags = ("failed", "has_usage", "has_content", "invalid")
    return frame.with_columns(
        pl.lit(flavour.name).alias("flavour"),
        pl.col("start").dt.replace_time_zone(None),
        pl.col(flags).cast(pl.Boolean),
        # Absent attributes are '' in a ClickHouse map.
        pl.col(
            "session", "rollout", "explicit_task", "span_agent", "error_type", "response_id", "response_model",
            "own_served_version",
        ).replace("", None),
    )  # fmt: skip


def read_spans(client: Any, window: Window) -> Spans:
    """Read one window.

    Args:
        client: what `spanloop_store.connect` returns.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    parameters = window.parameters()
    erased = _erased(client, parameters)
    known = flavours()
    anyone = " OR ".join(f"({flavour.recognise})" for flavour in known)
    own = [_recognise(flavour, known[:place]) for place, flavour in enumerate(known)]
    counted = _frame(
        client,
        _sql(
            "counts.sql",
            operations=MODEL_OPERATIONS,
            recognise=anyone,
            flavours=", ".join(f"countIf({sql})" for sql in own),
        ),
        {**parameters, "erased": erased},
    ).row(0, named=True)
    # A convention that nobody used costs no query; the first is asked for the columns' sake.
    rows = counted.pop("by_flavour")
    calls = pl.concat(
        [
            _calls(client, flavour, known[:place], parameters)
            for place, flavour in enumerate(known)
            if rows[place] or place == 0
        ],
        how="diagonal_relaxed",
    )
    gateway = _once(_frame(client, _sql("gateway.sql"), parameters)).with_columns(
        pl.col("start").dt.replace_time_zone(None),
        pl.col("in_window").cast(pl.Boolean),
        pl.col("response_id", "served_version", "prompt_version", "prompt_requested").replace("", None),
    )
    nested = _sql("nested.sql", recognise=anyone)
    ancestors = _ancestors(client, nested, parameters)
    if erased:
        calls, gateway, ancestors = (
            frame.filter(~pl.col("trace_id").is_in(erased)) for frame in (calls, gateway, ancestors)
        )
    return Spans(calls, gateway, ancestors, {k: int(v) for k, v in counted.items()})


def _ancestors(client: Any, traces: str, parameters: dict[str, Any]) -> pl.DataFrame:
    return _once(
        _frame(client, _sql("ancestors.sql", session=_sql("session.sql"), traces=traces), parameters)
    ).with_columns(
        pl.col("start").dt.replace_time_zone(None),
        pl.col("is_agent", "is_tool", "is_chain").cast(pl.Boolean),
        pl.col("agent_name", "agent_session", "rollout_above", "task_above").replace("", None),
    )


def read_ancestors(client: Any, traces: list[str]) -> pl.DataFrame:
    """The skeleton of these traces.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    named = "SELECT arrayJoin({traces:Array(String)})"
    return _ancestors(client, named, {"traces": traces})


def find_span(client: Any, span_id: str, trace_id: str) -> list[dict[str, Any]]:
    """Where a span is: `trace_id`, `span_id`, `start` (UTC), `service`, `name`, `gateway` (its span of a
    model call), `model_call` (by OpenTelemetry's names of operations); one for each trace that has it.

    Args:
        trace_id: empty: any.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    sql = _sql("find_span.sql", operations=MODEL_OPERATIONS)
    found = _frame(client, sql, {"span": span_id, "trace": trace_id})
    return found.with_columns(
        pl.col("start").dt.replace_time_zone("UTC"), pl.col("gateway", "model_call").cast(pl.Boolean)
    ).to_dicts()


def read_other_spans(client: Any, window: Window, *, model_calls: bool, limit: int) -> pl.DataFrame:
    """Spans that `read_spans` does not give: `trace_id`, `span_id`, `start`, `detail` (service and name).

    Args:
        model_calls: those of conventions that are not known; else whatever is no model call.
        limit: the most rows; the first in time.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    parameters = window.parameters()
    anyone = " OR ".join(f"({flavour.recognise})" for flavour in flavours())
    asked = {"erased": _erased(client, parameters), "model_calls": model_calls, "limit": limit}
    frame = _frame(
        client, _sql("others.sql", operations=MODEL_OPERATIONS, recognise=anyone), {**parameters, **asked}
    )
    return frame.with_columns(pl.col("start").dt.replace_time_zone(None))


def days(client: Any, window: Window) -> list[int]:
    """Midnights (UTC) that begin a day of the window with spans, nanoseconds since 1970.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    return [int(day) for day in _frame(client, _sql("days.sql"), window.parameters())["day"].to_list()]


def _erased(client: Any, parameters: dict[str, Any]) -> list[str]:
    """Late spans of what was erased, which the collector has not removed yet."""
    try:
        return erased_traces(client, parameters["since"], parameters["until"])
    except ClickHouseError as error:
        raise _no_answer(error) from error


def fingerprint(client: Any, window: Window) -> str:
    """Differs when the store's rows of the window do; reads ids alone.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    parameters = window.parameters()
    erased = _erased(client, parameters)
    # Most stores have none, and looking for those of the window's spans is not free.
    logs = _frame(client, "SELECT count() AS records FROM otel_logs").item()
    sql = _sql("fingerprint.sql", logs=_sql("fingerprint_logs.sql") if logs else "'-0-00'")
    return str(_frame(client, sql, {**parameters, "erased": erased}).item())


class Size(NamedTuple):
    """How much a window holds."""

    spans: int
    bytes: int  # of attributes, uncompressed; estimated from the average span
    cuts: list[int]  # nanoseconds that cut it into parts of about equal size


def size(client: Any, window: Window, parts: int) -> Size:
    """How much there is to read, and where to cut it into `parts`.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    levels = ", ".join(str(part / parts) for part in range(1, max(parts, 2)))
    row = _frame(client, _sql("size.sql", levels=levels), window.parameters()).row(0, named=True)
    spans = int(row["spans"])
    # Behind a Distributed table there are no parts to ask.
    average = float(row["bytes_a_span"] or _BYTES_A_SPAN)
    return Size(spans, int(spans * average), [int(cut) for cut in row["cuts"]] if spans else [])


def read_rewards(client: Any) -> pl.DataFrame:
    """Judgements by others, whenever they came.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    return _frame(client, _sql("rewards.sql")).with_columns(pl.col("time").dt.replace_time_zone(None))


def read_all_rewards(client: Any) -> pl.DataFrame:
    """Every judgement, with `computed`: whether `build` made it.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    found = _frame(client, _sql("all_rewards.sql"))
    return found.with_columns(pl.col("time").dt.replace_time_zone(None), pl.col("computed").cast(pl.Boolean))


def read_usage(client: Any, window: Window) -> pl.DataFrame:
    """`trace_id`, `span_id`, `response_id`, `is_gateway`, `input_tokens?`, `output_tokens?` of spans that say them.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    found = _frame(client, _sql("usage.sql"), window.parameters())
    return found.with_columns(pl.col("is_gateway").cast(pl.Boolean))


def read_services(client: Any, window: Window) -> list[str]:
    """The services that have spans in a window, the gateway's aside; a thousand of them at most.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    sql = (
        "SELECT DISTINCT toString(ServiceName) AS service FROM otel_traces "
        "WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64}) "
        "AND SpanAttributes['spanloop.gateway'] != 'true' ORDER BY service LIMIT 1000"
    )
    return [str(name) for name in _frame(client, sql, window.parameters())["service"].to_list()]


def span_range(client: Any) -> tuple[int, str, str]:
    """How many spans the store holds, and the first and last start (UTC) in words; for error messages."""
    rows = client.query(
        "SELECT count(), toString(min(Timestamp), 'UTC'), toString(max(Timestamp), 'UTC') FROM otel_traces"
    )
    count, first, last = rows.result_rows[0]
    return int(count), str(first), str(last)
