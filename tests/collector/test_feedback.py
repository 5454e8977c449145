"""`POST /v1/feedback`: what is taken, what is refused with which field named, and that what is answered is on the disk."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.receivers import Answer, Receivers, receivers

from spanloop_collector.expiring import Expiring
from spanloop_collector.feedback.judgement import FIELDS, FeedbackRefused, export_request, read_feedback
from spanloop_collector.feedback.openapi import document
from spanloop_collector.feedback.route import MAX_ITEMS, PATH
from spanloop_store.expiry import Expiry
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.signals import Signal, message_type

JSON = "application/json"
NOW = 1_795_000_000_000_000_000
TRACE, SPAN = "0123456789abcdef" * 2, "fedcba9876543210"
GOOD = {"response_id": "r1", "name": "thumb", "value": 1}


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Receivers]:
    with receivers(tmp_path, min_free_bytes=0) as both:
        yield both


def send(both: Receivers, body: Any, **headers: str) -> tuple[int, Any]:
    answer = post(both, body, **headers)
    return answer.status, json.loads(answer.body)


def post(both: Receivers, body: Any, kind: str = JSON, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return both.post(PATH, data, kind, **headers)


def records(both: Receivers) -> list[Any]:
    """The log records that are in the log, synced."""
    return [
        record
        for payload in both.logged(Signal.LOGS)
        for resource in message_type(Signal.LOGS).FromString(payload).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def said(record: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in record.attributes}


def fields_at_fault(answer: dict[str, Any]) -> list[str]:
    assert answer["status"] == "refused"
    assert all(error["message"] for error in answer["errors"])
    return [error["field"] for error in answer["errors"]]


def test_one_object_is_one_event_in_the_log(both: Receivers) -> None:
    judgement = {
        "trace_id": TRACE.upper(),
        "span_id": SPAN,
        "response_id": "r1",
        "session_id": "s1",
        "name": "quality",
        "value": 0.25,
        "label": "poor",
        "comment": "zu lang 🙂",
        "evaluator": "ann",
        "version": "3",
        "time": "2026-11-20T10:00:00.123456789+01:00",
        "id": "key",
    }
    assert send(both, judgement) == (200, {"id": "key", "status": "stored"})
    (record,) = records(both)
    assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, SPAN)
    assert record.event_name == "gen_ai.evaluation.result"
    assert record.time_unix_nano == 1_795_165_200_123_456_789
    assert said(record) == {
        "gen_ai.evaluation.name": "quality",
        "gen_ai.evaluation.score.value": 0.25,
        "gen_ai.evaluation.score.label": "poor",
        "gen_ai.evaluation.explanation": "zu lang 🙂",
        "gen_ai.response.id": "r1",
        "session.id": "s1",
        "spanloop.evaluation.id": "key",
        "spanloop.evaluator": "ann",
        "spanloop.evaluator.version": "3",
    }


@pytest.mark.parametrize(
    ("value", "score"), [(True, 1.0), (False, 0.0), (-2, -2.0), (0, 0.0), (1e-300, 1e-300)]
)
def test_numbers_and_truth_values(both: Receivers, value: object, score: float) -> None:
    assert send(both, GOOD | {"value": value})[0] == 200
    assert said(records(both)[0])["gen_ai.evaluation.score.value"] == score


def test_null_is_not_given_and_a_label_needs_no_value(both: Receivers) -> None:
    judgement = {**dict.fromkeys(FIELDS), "span_id": SPAN, "name": "n", "label": "good"}
    assert send(both, judgement)[0] == 200
    assert said(records(both)[0]).keys() == {
        "gen_ai.evaluation.name", "gen_ai.evaluation.score.label", "spanloop.evaluation.id", "spanloop.evaluator",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"response_id": "r", "name": "n", "value": NaN}', "value"),
        (b'{"response_id": "r", "name": "n", "value": -Infinity}', "value"),
        (b'{"response_id": "r", "name": "n", "value": 1e999}', "value"),
        (b'{"response_id": "r", "name": "n", "value": 1' + b"0" * 400 + b"}", "value"),
        (GOOD | {"value": "1"}, "value"),
        (GOOD | {"value": [1]}, "value"),
        (GOOD | {"value": None}, ""),
        (GOOD | {"score": 1}, "score"),
        (GOOD | {"trace_id": TRACE[1:]}, "trace_id"),
        (GOOD | {"trace_id": TRACE + "\n"}, "trace_id"),
        (GOOD | {"trace_id": "0" * 32}, "trace_id"),
        (GOOD | {"trace_id": 7}, "trace_id"),
        (GOOD | {"span_id": TRACE}, "span_id"),
        (GOOD | {"span_id": SPAN[:-1] + "g"}, "span_id"),
        (GOOD | {"response_id": ""}, "response_id"),
        (GOOD | {"response_id": None}, ""),
        (GOOD | {"name": None}, "name"),
        (GOOD | {"name": ""}, "name"),
        (GOOD | {"name": "n" * 201}, "name"),
        (GOOD | {"name": 1}, "name"),
        (GOOD | {"label": True}, "label"),
        (GOOD | {"comment": "c" * 20_001}, "comment"),
        (GOOD | {"time": "yesterday"}, "time"),
        (GOOD | {"time": "2026-02-30"}, "time"),
        (GOOD | {"time": "1999-12-31T23:59:59Z"}, "time"),
        (GOOD | {"time": 1_795_000_000_000}, "time"),  # milliseconds
        (GOOD | {"time": 946_684_799.999999}, "time"),
        (GOOD | {"time": 4_102_444_800.0}, "time"),
        (GOOD | {"time": True}, "time"),
        (b'{"response_id": "r", "name": "n", "value": 1, "time": NaN}', "time"),
        (GOOD | {"id": ""}, "id"),
        (GOOD | {"id": "k" * 256}, "id"),
        ("text", "items"),
        (3, "items"),
        ([], "items"),
        ({"items": {}}, "items"),
        ({"items": [GOOD], "name": "n"}, "name"),
        ([GOOD] * (MAX_ITEMS + 1), "items"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_field_at_fault_is_named_and_nothing_is_stored(both: Receivers, body: Any, field: str) -> None:
    status, answer = send(both, body)
    assert status == 422
    assert fields_at_fault(answer) == [field]
    assert not records(both)


def test_all_fields_at_fault_are_named(both: Receivers) -> None:
    status, answer = send(both, {"name": 1, "value": "x", "trace_id": "x", "surprise": 1})
    assert status == 422
    assert sorted(fields_at_fault(answer)) == ["name", "surprise", "trace_id", "value"]


def test_a_number_that_python_will_not_read_costs_its_item_alone(both: Receivers) -> None:
    """Of 5,000 digits: the whole body was answered as no JSON."""
    huge = json.dumps([GOOD, GOOD | {"value": 7}]).replace("7", "7" * 5000).encode()
    status, answer = send(both, huge)
    assert (status, answer["taken"]) == (207, 1)
    assert fields_at_fault(answer["items"][1]) == ["value"]


def test_an_answer_is_no_longer_than_what_was_sent(both: Receivers) -> None:
    """It named every unknown field, and 7 MB of those were 14 seconds of work."""
    body = json.dumps(GOOD | {f"x{number}": 1 for number in range(100_000)}).encode()
    answer = post(both, body)
    assert answer.status == 422
    assert len(answer.body) < 10_000
    told = json.loads(answer.body)["errors"]
    assert [error["field"] for error in told] == [f"x{number}" for number in range(11)]
    assert "99989 more" in told[-1]["message"]


def test_a_name_that_is_told_is_fit_for_a_terminal(both: Receivers) -> None:
    body = b'{"response_id": "r", "name": "n", "value": 1, "\\ud83d": 1, "\\u001b[2J": 1}'
    assert fields_at_fault(send(both, body)[1]) == [r"\ud83d", r"\x1b[2J"]
    assert fields_at_fault(send(both, b'{"items": [], "\\u0007": 1}')[1]) == [r"\x07"]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-11-20", 1_795_132_800_000_000_000),
        ("2026-11-20t10:00z", 1_795_168_800_000_000_000),
        ("2026-11-20 10:00:00.5-01:30", 1_795_174_200_500_000_000),
        (1_795_168_800, 1_795_168_800_000_000_000),
        (1_795_168_800.25, 1_795_168_800_250_000_000),
        (4_102_444_799.999999, 4_102_444_799_999_999_000),
    ],
)
def test_times(time: object, expected: int) -> None:
    assert abs(read_feedback(GOOD | {"time": time}, now_ns=NOW).time_ns - expected) <= 1000


@pytest.mark.parametrize("wrapped", [False, True], ids=["list", "items"])
def test_a_batch_has_an_answer_for_each_and_a_bad_one_stops_no_other(both: Receivers, wrapped: bool) -> None:
    items = [GOOD | {"id": "a"}, GOOD | {"value": "x"}, "nothing", GOOD | {"id": "a"}, GOOD | {"id": "b"}]
    status, answer = send(both, {"items": items} if wrapped else items)
    assert status == 207
    assert (answer["taken"], answer["refused"]) == (2, 3)
    first, *refused, last = answer["items"]
    assert (first, last) == ({"id": "a", "status": "stored"}, {"id": "b", "status": "stored"})
    assert [fields_at_fault(item) for item in refused] == [["value"], [""], ["id"]]
    assert [said(record)["spanloop.evaluation.id"] for record in records(both)] == ["a", "b"]
    assert send(both, [GOOD | {"value": "x"}])[0] == 422
    assert send(both, [GOOD])[0] == 200


def test_a_judgement_has_one_id_however_often_it_is_sent(both: Receivers) -> None:
    ids = [send(both, GOOD)[1]["id"] for _ in range(2)]
    ids += [send(both, [GOOD])[1]["items"][0]["id"]]
    assert len(set(ids)) == 1
    other = [
        send(both, GOOD | change)[1]["id"]
        for change in ({"value": 0}, {"evaluator": "x"}, {"time": "2026-11-20"})
    ]
    assert len({*ids, *other}) == 4


def test_the_same_request_again_is_stored_once(both: Receivers) -> None:
    judgement = GOOD | {"time": "2026-11-20T10:00:00Z"}
    assert [send(both, judgement)[1]["status"] for _ in range(3)] == ["stored", "repeated", "repeated"]
    assert len(records(both)) == 1


def test_an_idempotency_key_in_the_header(both: Receivers) -> None:
    header = {"Idempotency_Key": "k-1"}
    assert send(both, GOOD, **header)[1]["id"] == "k-1"
    assert [item["id"] for item in send(both, [GOOD, GOOD | {"id": "own"}], **header)[1]["items"]] == [
        "k-1/0",
        "own",
    ]
    assert send(both, GOOD | {"id": "own"}, **header)[1]["id"] == "own"
    status, answer = send(both, [GOOD | {"id": "k-1/1"}, GOOD | {"value": 0}], **header)
    assert (status, fields_at_fault(answer["items"][1])) == (207, ["id"])
    for bad in ("k" * 256, "", "k\tk", "ü"):
        status, answer = send(both, GOOD, **{"Idempotency_Key": bad})
        assert (status, fields_at_fault(answer)) == (422, ["Idempotency-Key"]), bad


def test_half_an_emoji_costs_no_feedback(both: Receivers) -> None:
    body = b'{"response_id": "r", "name": "n", "value": 1, "comment": "cut \\ud83d"}'
    assert send(both, body)[0] == 200
    assert said(records(both)[0])["gen_ai.evaluation.explanation"] == "cut \ufffd"


def test_what_the_store_would_delete_at_once_is_refused(tmp_path: Path) -> None:
    end = 1_700_000_000 * 10**9
    expiring = Expiring(lambda: {Signal.LOGS: Expiry(((-(1 << 63), end),), 30, NOW)})
    expiring.ask()
    with receivers(tmp_path, min_free_bytes=0, expiring=expiring) as both:
        status, answer = send(both, [GOOD | {"time": "2020-01-01"}, GOOD])
        assert (status, answer["taken"]) == (207, 1)
        (error,) = answer["items"][0]["errors"]
        assert error["field"] == "time"
        assert "the store keeps 30 days" in error["message"]


def test_a_retention_that_changes_in_the_middle_asks_to_send_again(tmp_path: Path) -> None:
    """All were answered as refused, those that had been stored as well."""
    end = 1_700_000_000 * 10**9

    class Changed(Expiring):
        """Of the requests, the first is read before the change and logged after it."""

        asked = 0

        def of(self, signal: Signal) -> Expiry | None:
            self.asked += 1
            return super().of(signal) if self.asked > 1 else None

    expiring = Changed(lambda: {Signal.LOGS: Expiry(((-(1 << 63), end),), 30, NOW)})
    expiring.ask()
    items = [GOOD | {"time": "2020-01-01"}, GOOD | {"time": "2026-11-20"}]
    with receivers(tmp_path, min_free_bytes=0, expiring=expiring) as both:
        answer = post(both, items)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        status, again = send(both, items)
        assert (status, [item["status"] for item in again["items"]]) == (207, ["refused", "repeated"])
        assert len(records(both)) == 1


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status"),
    [
        (b"{", JSON, {}, 400),
        (b"", JSON, {}, 400),
        (b"[" * 100_000, JSON, {}, 400),
        (b"\xff", JSON, {}, 400),
        (b"{}", "application/x-protobuf", {}, 415),
        (b"{}", "", {}, 415),
        (b"{}", JSON, {"Content_Encoding": "br"}, 415),
        (b"{}", JSON, {"Content_Encoding": "gzip"}, 400),
        (b" " * ((8 << 20) + 1), JSON, {}, 413),
        (gzip.compress(b" " * ((8 << 20) + 1)), JSON, {"Content_Encoding": "gzip"}, 413),
    ],
    ids=["cut", "empty", "deep", "bytes", "protobuf", "no type", "encoding", "no gzip", "large", "bomb"],
)
def test_bodies_that_are_none(
    both: Receivers, body: bytes, kind: str, headers: dict[str, str], status: int
) -> None:
    answer = post(both, body, kind, **headers)
    assert answer.status == status
    assert json.loads(answer.body)["status"] == "refused"
    assert not records(both)


def test_a_compressed_body(both: Receivers) -> None:
    assert post(both, gzip.compress(json.dumps(GOOD).encode()), Content_Encoding="gzip").status == 200


def test_other_methods_and_the_token(tmp_path: Path) -> None:
    with receivers(tmp_path, min_free_bytes=0, token="secret") as both:
        assert post(both, GOOD, Expect="soon").status == 417
        answer = both.post(PATH, method="GET")
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        answer = post(both, GOOD)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert post(both, GOOD, Authorization="Bearer other").status == 401
        assert not records(both)
        assert post(both, GOOD, Authorization="Bearer secret").status == 200


def test_a_full_disk_asks_to_try_again(tmp_path: Path) -> None:
    with receivers(tmp_path, min_free_bytes=1 << 62) as both:
        answer = post(both, GOOD)
        assert (answer.status, json.loads(answer.body)["status"]) == (503, "refused")
        assert int(answer.headers["Retry-After"]) > 0


def test_it_is_counted(both: Receivers) -> None:
    for body in (GOOD, [GOOD, 1], 1):
        post(both, body)
    text = both.post("/metrics", method="GET").body.decode()
    for outcome in ("ok", "partial", "refused"):
        assert f'spanloop_requests_total{{outcome="{outcome}",protocol="http",signal="feedback"}} 1' in text


def test_openapi_says_what_is_taken(both: Receivers) -> None:
    found = json.loads(both.post("/openapi.json", method="GET").body)
    assert found == document(PATH, MAX_ITEMS, "Idempotency-Key")
    assert tuple(sorted(found["components"]["schemas"]["Feedback"]["properties"])) == tuple(sorted(FIELDS))
    assert "417" in found["paths"][PATH]["post"]["responses"]  # which is HTTP's own


SCHEMA: dict[str, Any] = document(PATH, MAX_ITEMS, "k")["components"]["schemas"]["Feedback"]
JUDGEMENTS = st.fixed_dictionaries(
    {},
    optional={
        "trace_id": st.sampled_from([TRACE, TRACE.upper(), "0" * 32, TRACE[1:], "", None, 1]),
        "span_id": st.sampled_from([SPAN, "0" * 16, SPAN + "0", None, {}]),
        **{
            name: st.none() | st.text(max_size=5) | st.integers() | st.just("x" * 1001)
            for name in ("response_id", "session_id", "name", "label", "evaluator", "version", "id", "comment")
        },
        "value": st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        "time": st.sampled_from(
            ["2026-11-20T10:00:00Z", "2026-11-20T10:00:00.5+02:00", "1999-01-01T00:00:00Z", "soon", None, 1.5e9, 10**12, True]
        ),
        "other": st.none() | st.integers(),
    },
)  # fmt: skip


@given(JUDGEMENTS)
def test_what_is_taken_is_what_the_schema_says_and_decodes(fields: dict[str, Any]) -> None:
    matches = jsonschema.Draft202012Validator(SCHEMA).is_valid(fields)
    number = fields.get("value")
    if isinstance(number, float) and not math.isfinite(number):
        matches = False  # JSON has no such number
    if not matches:
        with pytest.raises(FeedbackRefused) as refused:
            read_feedback(fields, now_ns=NOW)
        assert {problem.field for problem in refused.value.problems} <= {*fields, "name", ""}
        return
    checked = check_protobuf(Signal.LOGS, export_request([read_feedback(fields, now_ns=NOW)]))
    assert (checked.items, checked.rejected) == (1, 0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
    )
)
def test_any_json_is_taken_or_refused(fields: Any) -> None:
    with contextlib.suppress(FeedbackRefused):
        assert read_feedback(fields, now_ns=NOW).id
