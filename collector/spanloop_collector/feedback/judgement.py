"""A judgement that somebody sends us: its fields, what each may hold, and the log record that carries it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from spanloop_store.evaluations import EVENT
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.otlp.wire import whole_text

SCOPE: Final = "spanloop.feedback"  # by which migration 0005_evaluations.sql knows the source `feedback`
EVALUATOR: Final = "feedback"  # where nobody is named
TARGETS: Final = ("trace_id", "span_id", "response_id", "session_id")
TRACE_DIGITS: Final = 32
SPAN_DIGITS: Final = 16
MAX_KEY: Final = 255  # characters of `id`
# Characters of a text; generous for people, short for what is meant to be logged elsewhere.
MAX_TEXT: Final = {
    "response_id": 500,
    "session_id": 500,
    "name": 200,
    "label": 1000,
    "comment": 20_000,
    "evaluator": 200,
    "version": 200,
    "id": MAX_KEY,
}
FIELDS: Final = (*TARGETS, "name", "value", "label", "comment", "evaluator", "version", "time", "id")
FIRST_SECOND: Final = 946_684_800  # 2000; a clock of before was never set
END_SECOND: Final = 4_102_444_800  # 2100
_TIME: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)(?:[Tt ](?P<clock>\d\d:\d\d(?::\d\d)?)(?:\.(?P<fraction>\d{1,9})\d*)?"
    r"(?P<zone>[Zz]|[+-]\d\d:\d\d)?)?"
)
_NANO: Final = 10**9
_QUOTED: Final = 40  # characters of a text in a message
_LONGEST_NAME: Final = 100  # characters of a field's name in a message
_INTEGER_DIGITS: Final = 400  # the largest float has 309
_NAMED: Final = 10  # unknown fields that are told one by one: an answer is no longer than what was sent


@dataclass(frozen=True)
class Problem:
    """Why a judgement is not taken.

    Args:
        field: the field at fault, as it was named; empty: the judgement as a whole.
        message: what is wrong with it.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class FeedbackRefused(ValueError):
    """A judgement with fields that cannot be taken; nothing of it was stored.

    Args:
        problems: one for each field at fault.
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Feedback:
    """One judgement, checked. Texts are empty where nothing was given.

    Args:
        id: idempotency key: one fact, one id.
        value: finite; None: only a label was given, and the judgement is unscored.
        time_ns: when it was made, in nanoseconds since 1970.
    """

    id: str
    trace_id: str
    span_id: str
    response_id: str
    session_id: str
    name: str
    value: float | None
    label: str
    comment: str
    evaluator: str
    version: str
    time_ns: int


def read_feedback(fields: object, *, now_ns: int, key: str = "") -> Feedback:
    """Checks the fields of one judgement. A field that is null is one that is not there.

    Without an `id` the judgement gets one from what it says, and from its time where one was given: sent again it is the same
    fact.

    Args:
        fields: what was sent; only a JSON object can be right.
        now_ns: the time of a judgement that names none.
        key: idempotency key from elsewhere, for one that has no `id`.

    Raises:
        FeedbackRefused: a field is unknown, missing, or holds what it must not; all of them are named.
    """
    if not isinstance(fields, Mapping):
        raise FeedbackRefused(Problem("", f"feedback is an object with {', '.join(FIELDS)}"))
    reader = _Reader(fields)
    found = Feedback(
        trace_id=reader.hex("trace_id", TRACE_DIGITS),
        span_id=reader.hex("span_id", SPAN_DIGITS),
        response_id=reader.text("response_id"),
        session_id=reader.text("session_id"),
        name=reader.text("name"),
        value=reader.value(),
        label=reader.text("label"),
        comment=reader.text("comment"),
        evaluator=reader.text("evaluator") or EVALUATOR,
        version=reader.text("version"),
        time_ns=reader.time(now_ns),
        id=reader.text("id") or key,
    )
    reader.finish()
    return found if found.id else _with_id(found, timed="time" in reader.given)


class _Reader:
    """The fields of one judgement, and what is wrong with them."""

    def __init__(self, fields: Mapping[Any, object]) -> None:
        self.given = {name: value for name, value in fields.items() if value is not None}
        unknown = [name for name in fields if name not in FIELDS]
        self._problems = [
            Problem(shown(name), f"is no field of feedback; those are {', '.join(FIELDS)}")
            for name in unknown[:_NAMED]
        ]
        if len(unknown) > _NAMED:
            self._problems.append(
                Problem(shown(unknown[_NAMED]), f"is none either, nor are {len(unknown) - _NAMED - 1} more")
            )

    def hex(self, name: str, digits: int) -> str:
        value = self.given.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", value):
            return self._wrong(name, f"is no id of {digits} hexadecimal digits")
        if not value.strip("0"):
            return self._wrong(name, "is zero, which is no id")
        return value.lower()

    def text(self, name: str) -> str:
        value = self.given.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            return self._wrong(name, f"is {_a(value)}, not a text")
        if not value and name != "comment":
            return self._wrong(name, "is empty")
        if len(value) > MAX_TEXT[name]:
            return self._wrong(name, f"has {len(value)} characters; {MAX_TEXT[name]} are allowed")
        return whole_text(value)

    def value(self) -> float | None:
        value = self.given.get("value")
        if value is None:
            return None
        if not isinstance(value, bool | int | float):
            what = repr(value[:_QUOTED]) if isinstance(value, str) else _a(value)
            self._wrong("value", f"is {what}, not a finite number, true or false")
            return None
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._wrong("value", f"is {number}, not a finite number")
            return None
        return number

    def time(self, now_ns: int) -> int:
        value = self.given.get("time")
        if value is None:
            return now_ns
        found = _nanoseconds(value)
        if found is None:
            self._wrong("time", "is neither RFC 3339 (2026-11-21T09:30:00Z) nor seconds since 1970")
            return now_ns
        if not FIRST_SECOND * _NANO <= found < END_SECOND * _NANO:
            self._wrong("time", "is not in the years 2000 to 2099")
        return found

    def finish(self) -> None:
        """Raises FeedbackRefused where anything was wrong."""
        for name, what in (
            (TARGETS, "says what is judged"),
            (("name",), "says what is judged about it"),
            (("value", "label"), "is the judgement"),
        ):
            if not any(option in self.given for option in name):
                missing = " or ".join((", ".join(name[:-1]), name[-1])) if len(name) > 1 else name[0]
                self._wrong(name[0] if len(name) == 1 else "", f"{missing} is missing: it {what}")
        if self._problems:
            raise FeedbackRefused(*self._problems)

    def _wrong(self, field: str, message: str) -> str:
        self._problems.append(Problem(field, message))
        return ""


def export_request(feedback: Sequence[Feedback]) -> bytes:
    """An OTLP request of log records, one `gen_ai.evaluation.result` event a judgement; equal ones give equal bytes."""
    request = message_type(Signal.LOGS)()
    scope = request.resource_logs.add().scope_logs.add()
    scope.scope.name = SCOPE
    for item in feedback:
        record = scope.log_records.add()
        record.time_unix_nano = item.time_ns
        record.event_name = EVENT
        record.trace_id = bytes.fromhex(item.trace_id)
        record.span_id = bytes.fromhex(item.span_id)
        texts = {
            "gen_ai.evaluation.name": item.name,
            "gen_ai.evaluation.score.label": item.label,
            "gen_ai.evaluation.explanation": item.comment,
            "gen_ai.response.id": item.response_id,
            "session.id": item.session_id,
            "spanloop.evaluation.id": item.id,
            "spanloop.evaluator": item.evaluator,
            "spanloop.evaluator.version": item.version,
        }
        for key, text in texts.items():
            if text:
                record.attributes.add(key=key).value.string_value = text
        if item.value is not None:
            record.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = item.value
    data: bytes = request.SerializeToString()
    return data


def _with_id(found: Feedback, *, timed: bool) -> Feedback:
    facts = [
        found.trace_id,
        found.span_id,
        found.response_id,
        found.session_id,
        found.name,
        found.value,
        found.label,
    ]
    facts += [found.comment, found.evaluator, found.version, found.time_ns if timed else None]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:TRACE_DIGITS]
    return Feedback(**{**vars(found), "id": digest})


def _nanoseconds(value: object) -> int | None:
    """Nanoseconds since 1970 of RFC 3339 (UTC where it names no zone) or of Unix seconds; None: neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if not isinstance(value, str):
        try:
            # A float of seconds has no room for nanoseconds; its two parts are exact, so that none is rounded into 2100.
            return int(value) * _NANO + int(value % 1 * 10**6) * 1000
        except (OverflowError, ValueError):
            return None
    match = _TIME.fullmatch(value)
    if match is None:
        return None
    try:
        moment = datetime.fromisoformat(
            f"{match['day']}T{match['clock'] or '00:00'}{(match['zone'] or 'Z').upper()}"
        )
    except ValueError:
        return None
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    fraction = int((match["fraction"] or "0").ljust(9, "0"))
    return (delta.days * 86_400 + delta.seconds) * _NANO + fraction


def load_json(data: bytes) -> Any:
    """What a JSON text says. NaN, Infinity and numbers beyond all floats are taken: the field is named then, and not the text.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    return json.loads(data, parse_int=_integer)


def shown(name: object) -> str:
    """A name that somebody sent, short and fit for a terminal."""
    text = str(name)[:_LONGEST_NAME]
    return text if text.isprintable() else ascii(text)[1:-1]


def _integer(digits: str) -> float:
    # Python refuses to read an integer of more than 4,300 digits, and with it the whole text.
    return int(digits) if len(digits) <= _INTEGER_DIGITS else float(digits)


def _a(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), f"a {type(value).__name__}")
