"""Feedback that is described, and feedback that is not: what was taken is in the tables, and nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from urllib.request import urlopen

from bench.fuzz.described import Described, Sent
from bench.fuzz.served import Reply, Served
from spanloop_collector.feedback.judgement import END_SECOND, FIRST_SECOND


class FeedbackTarget(Described):
    """`POST /v1/feedback` of a running collector."""

    def __init__(self, served: Served) -> None:
        with urlopen(f"{served.otlp_http}/openapi.json", timeout=60) as answer:
            super().__init__(served.otlp_http, json.load(answer), {})
        self._served = served
        self._taken: Counter[str] = Counter()  # id → how often an answer said "stored"

    def open_statuses(self, sent: Sent) -> tuple[int, ...]:  # noqa: ARG002  # the same for all
        """The collector of these runs asks for no token: who has one or not is told the same."""
        return (200, 207, 400, 413, 415, 417, 422)

    def judge(self, sent: Sent, reply: Reply, trace_id: str, shown: str) -> None:  # noqa: ARG002  # there are no traces
        """Exact in both directions: what the document allows is taken, what it does not is refused with the field named."""
        key = any(name.lower() == "idempotency-key" for name in sent.case.headers or {})
        # The header's pattern is narrower than what is taken: HTTP itself strips blanks around a value.
        if sent.plain and not sent.fits and not key and not _at_the_edge(sent.case.body):
            assert reply.status != 200, f"took what its document does not allow: {shown}"
        if not reply.body or reply.headers.get("content-type", "").partition(";")[0] != "application/json":
            assert reply.status in (0, 400, 404, 405, 417), f"an answer of another form: {shown}"
            return
        said = json.loads(reply.body)
        items: list[dict[str, Any]] = said.get("items", [said])
        # What no schema can say: two keys for one judgement, and a zone that moves a time out of its century.
        problems = [problem for item in items for problem in item.get("errors", ())]
        wrong = [p for p in problems if p["field"] != "id" and "is not in the years" not in p["message"]]
        if sent.plain and sent.fits:
            assert reply.status in (200, 207, 422), f"refused what its document allows: {shown}"
            assert not wrong, f"refused what its document allows: {shown}"
        if reply.status in (200, 207):
            self._taken.update(item["id"] for item in items if item["status"] == "stored")
            assert any(item["status"] != "refused" for item in items), shown
        else:
            assert all(item["status"] == "refused" and item["errors"] for item in items), shown
        if reply.status == 422:
            assert all(problem["message"] for item in items for problem in item["errors"]), shown

    def settle(self) -> None:
        """One log record for each judgement that was stored, and one reward for each id."""
        self._served.flush()
        key = "LogAttributes['spanloop.evaluation.id']"
        rows = self._served.query(
            f"SELECT {key}, count() FROM otel_logs WHERE EventName = 'gen_ai.evaluation.result' GROUP BY 1"
        )
        kept = Counter(dict(rows))
        assert kept == self._taken, (
            f"stored and not in otel_logs: {[*(self._taken - kept)][:5]}; "
            f"in otel_logs and never stored: {[*(kept - self._taken)][:5]}"
        )
        rewards = {name for (name,) in self._served.query("SELECT DISTINCT id FROM rewards")}
        assert rewards == set(kept), (
            f"logged and no reward: {[*(set(kept) - rewards)][:5]}; "
            f"a reward of nothing: {[*(rewards - set(kept))][:5]}"
        )


def _at_the_edge(body: Any) -> bool:
    """Whether a number lies where the document is a little narrower than the code: the largest floats, the first and last day."""
    items = body.get("items", [body]) if isinstance(body, dict) else body
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            for number in (item.get("value"), item.get("time")):
                if isinstance(number, int | float) and (
                    abs(number) > 1e308
                    or abs(number - FIRST_SECOND) <= 86_400
                    or abs(number - END_SECOND) <= 86_400
                ):
                    return True
            if isinstance(time := item.get("time"), str) and time[:4] in ("2000", "2099"):
                return True
    return False
