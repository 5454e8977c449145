"""Every query of every dashboard runs on recorded traces and returns what its panel needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.dashboards.conftest import VERSION, Recorded
from tests.dashboards.grafana import ALL, Context, UnknownMacro, Variable, expand

from spanloop_store.engine import READER_ROLE

FOLDER = Path(__file__).parents[2] / "dashboards"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
NUMERIC = re.compile(r"^(Nullable\()?(U?Int\d+|Float\d+)\)?$")


def panels() -> list[Any]:
    return [
        pytest.param(name, panel, id=f"{name}-{panel['title']}")
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
    ]


def find(dashboard: str, title: str, kind: str = "") -> dict[str, Any]:
    found = [p for p in DASHBOARDS[dashboard]["panels"] if p["title"] == title and kind in ("", p["type"])]
    assert len(found) == 1, f"{title!r} in {dashboard}: {len(found)}"
    return found[0]


def query_variables(dashboard: str) -> list[dict[str, Any]]:
    return [v for v in DASHBOARDS[dashboard]["templating"]["list"] if v["type"] == "query"]


def context(recorded: Recorded, dashboard: str, **chosen: Any) -> Context:
    """What a user sees who opens the dashboard and chooses nothing, except what is given."""
    variables: dict[str, Variable] = {}
    for variable in DASHBOARDS[dashboard]["templating"]["list"]:
        if variable["type"] == "textbox":
            variables[variable["name"]] = Variable(variable["query"])
        elif variable["type"] == "query":
            options = _options(recorded, dashboard, variable, variables)
            first = options[0] if options else ""
            variables[variable["name"]] = Variable(ALL if variable["includeAll"] else first, options)
    for name, value in chosen.items():
        assert name in variables, name
        variables[name] = Variable(value, variables[name].options)
    return Context(recorded.start, recorded.end, variables=variables)


_known_options: dict[tuple[str, str, str], list[str]] = {}


def _options(
    recorded: Recorded, dashboard: str, variable: dict[str, Any], sofar: dict[str, Variable]
) -> list[str]:
    """What a variable's query offers; the store does not change while the tests run, so each is asked once."""
    key = (str(recorded.engine.url.folder), dashboard, variable["name"])
    if key not in _known_options:
        sql = expand(variable["query"]["rawSql"], Context(recorded.start, recorded.end, variables=sofar))
        _known_options[key] = [str(row[0]) for row in recorded.client.query(sql).result_rows]
    return _known_options[key]


def run(recorded: Recorded, dashboard: str, panel: dict[str, Any], **chosen: Any) -> list[dict[str, Any]]:
    return rows(query(recorded, dashboard, panel, **chosen))


def query(recorded: Recorded, dashboard: str, panel: dict[str, Any], **chosen: Any) -> Any:
    (target,) = panel["targets"]
    return recorded.client.query(expand(target["rawSql"], context(recorded, dashboard, **chosen)))


def rows(result: Any) -> list[dict[str, Any]]:
    return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]


@pytest.mark.parametrize(("dashboard", "panel"), panels())
def test_panel_returns_rows_of_the_right_shape(
    recorded: Recorded, dashboard: str, panel: dict[str, Any]
) -> None:
    judged = {"trace_id": recorded.stamped_trace} if dashboard == "traces" else {}
    result = query(recorded, dashboard, panel, **judged)
    types = dict(zip(result.column_names, (t.name for t in result.column_types), strict=True))
    assert result.result_rows, "no rows"
    if panel["type"] == "stat":
        (kind,) = types.values()
        assert NUMERIC.match(kind), types
        assert len(result.result_rows) == 1
        assert result.result_rows[0][0] is not None
    elif panel["type"] == "timeseries":
        # The plugin makes series from a time column, at most one label, and numbers; rows must be in time order.
        assert next(iter(types)) == "time"
        assert types["time"].startswith("DateTime")
        others = [kind for name, kind in types.items() if name != "time"]
        labels = [kind for kind in others if not NUMERIC.match(kind)]
        assert len(labels) <= 1
        assert all(kind in ("String", "LowCardinality(String)", "Nullable(String)") for kind in labels), types
        assert len(others) > len(labels)
        times = [row[0] for row in result.result_rows]
        assert times == sorted(times)


@pytest.mark.parametrize(("dashboard", "panel"), panels())
def test_table_overrides_name_columns_that_exist(
    recorded: Recorded, dashboard: str, panel: dict[str, Any]
) -> None:
    judged = {"trace_id": recorded.stamped_trace} if dashboard == "traces" else {}
    names = set(query(recorded, dashboard, panel, **judged).column_names)
    wanted = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    wanted |= {sort["displayName"] for sort in panel["options"].get("sortBy", [])}
    assert wanted <= names


@pytest.mark.parametrize(("dashboard", "panel"), panels())
def test_panel_survives_an_empty_window_and_hostile_text(
    recorded: Recorded, dashboard: str, panel: dict[str, Any]
) -> None:
    (target,) = panel["targets"]
    chosen: dict[str, Any] = {}
    for variable in DASHBOARDS[dashboard]["templating"]["list"]:
        if variable["type"] == "textbox":
            chosen[variable["name"]] = 'it\'s (a, "test"'
        elif variable["type"] == "query":
            chosen[variable["name"]] = ["it's", "b"] if variable["multi"] else "it's"
    filled = context(recorded, dashboard, **chosen)
    recorded.client.query(expand(target["rawSql"], filled))
    recorded.client.query(
        expand(target["rawSql"], Context(filled.start, filled.start, variables=filled.variables))
    )


@pytest.mark.parametrize(("dashboard", "panel"), panels())
def test_the_read_only_role_is_enough(recorded: Recorded, dashboard: str, panel: dict[str, Any]) -> None:
    (target,) = panel["targets"]
    handle = recorded.engine.handle(READER_ROLE)
    try:
        handle.query(expand(target["rawSql"], context(recorded, dashboard)), "Native")
        with pytest.raises(Exception, match="Not enough privileges"):
            handle.query("TRUNCATE TABLE otel_traces")
    finally:
        handle.close()


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_variables_offer_values(recorded: Recorded, dashboard: str) -> None:
    variables = context(recorded, dashboard).variables
    for variable in query_variables(dashboard):
        assert variables[variable["name"]].options, variable["name"]


def test_annotations_run(recorded: Recorded) -> None:
    for dashboard, content in DASHBOARDS.items():
        for annotation in content["annotations"]["list"]:
            if "target" not in annotation:
                continue
            result = recorded.client.query(
                expand(annotation["target"]["rawSql"], context(recorded, dashboard))
            )
            assert result.column_names[0] == "time"
            assert result.result_rows


def test_trace_panel_has_the_aliases_and_types_that_grafana_reads(recorded: Recorded) -> None:
    panel = find("traces", "Trace")
    assert panel["type"] == "traces"
    # Without this format the plugin does not mark the frame as a trace, and the panel stays empty.
    assert panel["targets"][0]["format"] == 3
    result = query(recorded, "traces", panel, trace_id=recorded.linked_trace)
    types = dict(zip(result.column_names, (t.name for t in result.column_types), strict=True))
    pairs = r"Array\(Map\((LowCardinality\()?String\)?, String\)\)"
    expected = {
        "traceID": "String",
        "spanID": "String",
        "parentSpanID": "String",
        "operationName": r"(LowCardinality\()?String\)?",
        "serviceName": r"(LowCardinality\()?String\)?",
        "startTime": "Float64",
        "duration": "Float64",
        "tags": pairs,
        "serviceTags": pairs,
        "statusCode": r"U?Int\d+",
        "statusMessage": "String",
        "kind": r"(LowCardinality\()?String\)?",
        "instrumentationLibraryName": "String",
        "instrumentationLibraryVersion": "String",
        "traceState": "String",
        "logs": rf"Array\(Tuple\(name String, timestamp String, fields {pairs}\)\)",
        "references": rf"Array\(Tuple\(traceID String, spanID String, tags {pairs}\)\)",
    }
    assert set(types) == set(expected)
    for name, pattern in expected.items():
        assert re.fullmatch(pattern, types[name].replace("`", "")), (name, types[name])
    (span,) = rows(result)
    assert span["traceID"] == recorded.linked_trace
    assert span["parentSpanID"] == ""
    assert span["duration"] == pytest.approx(1.0)  # ms
    assert recorded.start.timestamp() * 1000 < span["startTime"] < recorded.end.timestamp() * 1000
    assert {"key": "spanloop.model.version", "value": VERSION} in span["tags"]
    assert {"key": "service.name", "value": "spanloop-gateway"} in span["serviceTags"]
    assert span["logs"][0]["name"] == "first token"
    assert span["references"][0]["traceID"] == recorded.stamped_trace


def test_trace_panel_shows_whole_traces(recorded: Recorded) -> None:
    panel = find("traces", "Trace")
    traces = run(recorded, "traces", find("traces", "Traces", "table"))
    for trace in traces:
        spans = run(recorded, "traces", panel, trace_id=trace["Trace"])
        assert len(spans) == trace["Spans"]
        ids = {span["spanID"] for span in spans}
        assert len(ids) == len(spans)
        assert all(span["parentSpanID"] in ids | {""} for span in spans)
        assert any(span["parentSpanID"] == "" for span in spans)


def test_trace_panel_opens_the_newest_trace_when_none_is_chosen(recorded: Recorded) -> None:
    newest = recorded.client.query("SELECT argMax(TraceId, Timestamp) FROM otel_traces").result_rows[0][0]
    assert {span["traceID"] for span in run(recorded, "traces", find("traces", "Trace"))} == {newest}


def test_failed_spans_are_marked_in_the_trace_panel(recorded: Recorded) -> None:
    failed = run(recorded, "traces", find("traces", "Traces", "table"), status=["Error"])
    assert failed
    for trace in failed:
        spans = run(recorded, "traces", find("traces", "Trace"), trace_id=trace["Trace"])
        assert 2 in {span["statusCode"] for span in spans}


def test_search_table_filters(recorded: Recorded) -> None:
    table = find("traces", "Traces", "table")
    everything = run(recorded, "traces", table)
    assert sum(row["Spans"] for row in everything) == recorded.spans
    by_service = run(recorded, "traces", table, service=["spanloop-gateway"])
    assert recorded.linked_trace in {row["Trace"] for row in by_service}
    assert {row["Service"] for row in by_service} == {"spanloop-gateway"}
    by_agent = run(recorded, "traces", table, agent=["weather_agent"])
    assert 0 < len(by_agent) < len(everything)
    assert all("weather_agent" in row["Agents"] for row in by_agent)
    by_text = run(recorded, "traces", table, search="WEATHER IN PARIS")
    assert 0 < len(by_text) < len(everything)
    longest = max(row["Duration"] for row in everything)
    slow = run(recorded, "traces", table, min_duration_ms=str(longest // 1_000_000))
    assert len(slow) >= 1
    assert len(slow) < len(everything)
    assert run(recorded, "traces", table, search="no span says this") == []


def test_calls_are_counted_once(recorded: Recorded) -> None:
    """Twins with one response id are one call, and the gateway's span is none beside the agent's."""
    count = """
        SELECT uniqExact(if(SpanAttributes['gen_ai.response.id'] = '', SpanId, SpanAttributes['gen_ai.response.id']))
        FROM otel_traces
        WHERE SpanAttributes['gen_ai.operation.name'] = 'chat' AND ServiceName != 'spanloop-gateway'
    """
    calls = recorded.client.query(count).result_rows[0][0]
    spans = recorded.client.query(
        "SELECT count() FROM otel_traces WHERE SpanAttributes['gen_ai.operation.name'] = 'chat'"
    ).result_rows[0][0]
    assert calls < spans - 2, "the recordings hold twins beside the gateway's two spans"
    assert run(recorded, "agents", find("agents", "Model calls")) == [{"calls": calls}]
    assert sum(row["calls"] for row in run(recorded, "agents", find("agents", "Calls by agent"))) == calls
    table = run(recorded, "agents", find("agents", "Agents and model versions"))
    assert sum(row["Calls"] for row in table) == calls


def test_agents_are_named_by_the_call_by_the_span_above_it_or_by_the_service(recorded: Recorded) -> None:
    agents = {row["Agent"] for row in run(recorded, "agents", find("agents", "Agents and model versions"))}
    assert {"weather_agent", "Triage agent", "Weather agent", "agent-a_sync_basic"} <= agents
    listed = {row["Agents"] for row in run(recorded, "traces", find("traces", "Traces", "table"))}
    assert {"weather_agent", "Triage agent, Weather agent", "agent-a_sync_basic", ""} <= listed


def test_tokens_are_the_agents(recorded: Recorded) -> None:
    once = """
        SELECT sum(tokens) FROM (
            SELECT toUInt64OrZero(SpanAttributes['gen_ai.usage.input_tokens']) AS tokens
            FROM otel_traces
            WHERE SpanAttributes['gen_ai.operation.name'] = 'chat' AND ServiceName != 'spanloop-gateway'
            LIMIT 1 BY if(SpanAttributes['gen_ai.response.id'] = '', SpanId, SpanAttributes['gen_ai.response.id'])
        )
    """
    expected = recorded.client.query(once).result_rows[0][0]
    assert 0 < expected < 1_000_000
    assert run(recorded, "agents", find("agents", "Input tokens")) == [{"tokens": expected}]
    assert sum(row["input"] for row in run(recorded, "agents", find("agents", "Tokens"))) == expected


def test_version_comes_from_the_gateway(recorded: Recorded) -> None:
    panel = find("agents", "Agents and model versions")
    (row,) = run(recorded, "agents", panel, version=[VERSION])
    assert row["Agent"] == "agent-a_sync_basic"
    assert row["Calls"] == 1


def test_reward_is_by_version_once_and_unscored_is_not_zero(recorded: Recorded) -> None:
    table = run(recorded, "agents", find("agents", "Reward by model version and agent"), reward="exact_match")
    by_version = {row["Version"]: row for row in table}
    assert by_version[VERSION]["Scored"] == 1
    assert by_version[VERSION]["Mean"] == 1.0
    assert by_version["unknown"]["Mean"] == 0.0
    assert len(table) == 2
    (mean,) = run(recorded, "agents", find("agents", "Mean reward"), reward="exact_match", version=[VERSION])
    assert mean == {"reward": 1.0}
    over_time = run(recorded, "agents", find("agents", "Reward by model version"), reward="exact_match")
    assert {(row["version"], row["mean"]) for row in over_time} == {(VERSION, 1.0), ("unknown", 0.0)}


def test_reward_is_by_the_prompt_that_ran(recorded: Recorded) -> None:
    panel = find("agents", "Reward by model version and prompt version")
    table = run(recorded, "agents", panel, reward="exact_match")
    named = {
        (row["Version"], row["Prompt"], row["In place of"]): (row["Scored"], row["Mean"]) for row in table
    }
    assert named == {
        (VERSION, "calculator@4", "calculator@3"): (1, 1.0),
        ("unknown", "unknown", ""): (1, 0.0),
    }


def test_each_judgement_of_an_evaluator_counts_once(recorded: Recorded) -> None:
    """A rule that judged an episode again counts by its newest value, one of calls once a call, an unscored judgement by none."""
    found = {
        (row["Reward"], row["Source"]): row
        for row in run(recorded, "agents", find("agents", "Rewards by evaluator"))
    }
    counts = {key: (row["Judgements"], row["Unscored"], row["Mean"]) for key, row in found.items()}
    assert counts == {
        ("concise", "rule"): (2, 0, 0.75),
        ("exact_match", "rule"): (1, 0, 1.0),
        ("exact_match", "event"): (2, 1, 0.0),
        ("helpful", "event"): (1, 0, 0.5),
    }


def test_rewards_of_a_trace_are_listed_once(recorded: Recorded) -> None:
    table = run(recorded, "traces", find("traces", "Rewards of this trace"), trace_id=recorded.stamped_trace)
    assert sorted((row["Reward"], str(row["Value"])) for row in table) == [
        ("concise", "0.5"),
        ("concise", "1.0"),
        ("exact_match", "0.25"),
        ("exact_match", "1.0"),
        ("exact_match", "None"),
        ("helpful", "0.5"),
    ]


def test_errors_are_counted_by_type(recorded: Recorded) -> None:
    errors = run(recorded, "agents", find("agents", "Failed calls by error"))
    (share,) = run(recorded, "agents", find("agents", "Calls that failed"))
    (calls,) = run(recorded, "agents", find("agents", "Model calls"))
    assert sum(row["calls"] for row in errors) == pytest.approx(share["share"] * calls["calls"])
    assert errors


def test_the_expander_refuses_what_the_plugin_would_pass_on() -> None:
    from datetime import UTC, datetime

    here = Context(
        datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC), 5, {"v": Variable(["a"])}
    )
    assert expand("$__timeFilter(t) AND v IN (${v:singlequote})", here) == (
        "t >= toDateTime(1767225600) AND t <= toDateTime(1767312000) AND v IN ('a')"
    )
    assert expand("$__timeInterval(t), $__interval_s", here) == (
        "toStartOfInterval(toDateTime(t), INTERVAL 5 second), 5"
    )
    assert expand("$__conditionalAll(f(a, b) > 0, $v)", here) == "f(a, b) > 0"
    everything = Context(here.start, here.end, 5, {"v": Variable(ALL, ["a"])})
    assert expand("$__conditionalAll(f(a, b) > 0, $v)", everything) == "1=1"
    for wrong in ("$__timeFiler(t)", "$missing", "$__timeFilter(a, b)", "$__conditionalAll(x, $missing)"):
        with pytest.raises(UnknownMacro):
            expand(wrong, here)
