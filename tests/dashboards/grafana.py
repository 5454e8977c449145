"""What Grafana and its ClickHouse plugin do to a query before ClickHouse sees it, in the plugin's own order.

Source: grafana/clickhouse-datasource v4, `src/data/CHDatasource.ts` (`applyTemplateVariables`, `applyConditionalAll`) in the
browser, then `pkg/macros/macros.go` in the plugin's backend; variable formats are Grafana's own (`singlequote`, `sqlstring`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

ALL = "$__all"
Value = str | Sequence[str]


@dataclass(frozen=True)
class Variable:
    """One template variable: what is chosen now, and what All would expand to."""

    value: Value
    options: Sequence[str] = ()

    @property
    def is_all(self) -> bool:
        return self.value == ALL or list(self.value) == [ALL]

    @property
    def chosen(self) -> Value:
        return list(self.options) if self.is_all else self.value


@dataclass(frozen=True)
class Context:
    """The time range (UTC), the panel's interval and the variables' values."""

    start: datetime
    end: datetime
    interval_s: float = 60.0
    variables: Mapping[str, Variable] = field(default_factory=dict)


class UnknownMacro(AssertionError):
    """The query uses something that the plugin would send to ClickHouse as it stands."""


def expand(sql: str, context: Context) -> str:
    """The SQL that reaches ClickHouse.

    Raises:
        UnknownMacro: a macro that the plugin does not know, or a variable that the dashboard does not define.
    """
    sql = _conditional_all(sql, context.variables)
    sql = _template_variables(sql, context.variables)
    return _macros(sql, context)


def _conditional_all(sql: str, variables: Mapping[str, Variable]) -> str:
    """`$__conditionalAll(condition, $variable)` → `1=1` when the variable is empty or All, else the condition."""
    macro = "$__conditionalAll("
    while (at := sql.rfind(macro)) != -1:
        args, end = _arguments(sql, at + len(macro) - 1)
        if len(args) != 2:
            raise UnknownMacro(f"$__conditionalAll takes two arguments, not {len(args)}: {sql[at : at + 80]}")
        name = re.search(r"(?<=\$\{)\w+(?=\})|(?<=\$)\w+", args[1])
        if name is None or name[0] not in variables:
            raise UnknownMacro(f"no such variable: {args[1].strip()}")
        variable = variables[name[0]]
        phrase = "1=1" if variable.is_all or variable.value in ("", []) else args[0]
        sql = sql[:at] + phrase + sql[end:]
    return sql


def _template_variables(sql: str, variables: Mapping[str, Variable]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match["bare"] or match["name"]
        if name.startswith("__"):
            return match[0]
        if name not in variables:
            raise UnknownMacro(f"no such variable: {match[0]}")
        return _format(variables[name].chosen, match["format"] or "")

    return re.sub(r"\$(?P<bare>\w+)|\$\{(?P<name>\w+)(?::(?P<format>\w+))?\}", replace, sql)


def _format(value: Value, how: str) -> str:
    values = [value] if isinstance(value, str) else list(value)
    if how == "singlequote":
        return ",".join("'" + v.replace("'", "\\'") + "'" for v in values)
    if how == "sqlstring":
        return ",".join("'" + v.replace("'", "''") + "'" for v in values)
    if how in ("", "raw"):
        return value if isinstance(value, str) else "'" + "','".join(values) + "'"
    raise UnknownMacro(f"variable format {how!r}")


def _macros(sql: str, context: Context) -> str:
    start_s, end_s = int(context.start.timestamp()), int(context.end.timestamp())
    start_ms, end_ms = int(context.start.timestamp() * 1000), int(context.end.timestamp() * 1000)
    start_date, end_date = (f"toDate('{t.astimezone(UTC):%Y-%m-%d}')" for t in (context.start, context.end))
    seconds = max(int(context.interval_s), 1)
    milliseconds = max(int(context.interval_s * 1000), 1)

    def between(column: str, low: str, high: str) -> str:
        return f"{column} >= {low} AND {column} <= {high}"

    def seconds_filter(column: str) -> str:
        return between(column, f"toDateTime({start_s})", f"toDateTime({end_s})")

    def milliseconds_filter(column: str) -> str:
        return between(column, f"fromUnixTimestamp64Milli({start_ms})", f"fromUnixTimestamp64Milli({end_ms})")

    def date_time_filter(date: str, time: str) -> str:
        return f"({between(date, start_date, end_date)}) AND ({seconds_filter(time)})"

    table: dict[str, tuple[int, Callable[..., str]]] = {
        "fromTime": (0, lambda: f"toDateTime({start_s})"),
        "toTime": (0, lambda: f"toDateTime({end_s})"),
        "fromTime_ms": (0, lambda: f"fromUnixTimestamp64Milli({start_ms})"),
        "toTime_ms": (0, lambda: f"fromUnixTimestamp64Milli({end_ms})"),
        "timeFilter": (1, seconds_filter),
        "timeFilter_ms": (1, milliseconds_filter),
        "dateFilter": (1, lambda column: between(column, start_date, end_date)),
        "dateTimeFilter": (2, date_time_filter),
        "dt": (2, date_time_filter),
        "timeInterval": (1, lambda c: f"toStartOfInterval(toDateTime({c}), INTERVAL {seconds} second)"),
        "timeInterval_ms": (
            1,
            lambda c: f"toStartOfInterval(toDateTime64({c}, 3), INTERVAL {milliseconds} millisecond)",
        ),
        "interval_s": (0, lambda: str(seconds)),
    }
    while (match := re.search(r"\$__(\w+)", sql)) is not None:
        name, end = match[1], match.end()
        if name not in table:
            raise UnknownMacro(f"$__{name}")
        count, function = table[name]
        args: list[str] = []
        if end < len(sql) and sql[end] == "(":
            args, end = _arguments(sql, end)
            args = [] if args == [""] else args
        if len(args) != count:
            raise UnknownMacro(f"$__{name} takes {count} arguments, not {len(args)}")
        sql = sql[: match.start()] + function(*(arg.strip() for arg in args)) + sql[end:]
    return sql


def _arguments(sql: str, opening: int) -> tuple[list[str], int]:
    """The arguments in the parentheses that open at `opening`, and the place behind them.

    Like the plugin, it counts parentheses and knows nothing of string literals.
    """
    args, depth, begin = [], 0, opening + 1
    for at in range(opening, len(sql)):
        if sql[at] == "(":
            depth += 1
        elif sql[at] == ")":
            depth -= 1
            if depth == 0:
                return [*args, sql[begin:at]], at + 1
        elif sql[at] == "," and depth == 1:
            args.append(sql[begin:at])
            begin = at + 1
    raise UnknownMacro(f"parentheses do not close: {sql[opening : opening + 80]}")
