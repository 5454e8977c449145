"""Verdicts that were given before, by content, in table `rewards`: a rebuild asks nothing again, and `erase` finds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from spanloop_trainer.transform.rewards.stored import OWN

# Keys named in one query.
_ASKED = 2000
_KEY, _PROMPT, _COMPLETION = "spanloop.judge.key", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


class Verdict(NamedTuple):
    """What a judge said about a content.

    Attributes:
        value: the reward; None: its answer could not be read.
        why: its reason, or why it could not be read.
        prompt_tokens, completion_tokens: what it took; of a ranking the share of this one.
    """

    value: float | None
    why: str
    prompt_tokens: int
    completion_tokens: int


class Judgement(NamedTuple):
    """A verdict as it is written down: which episode it was given for, by its last call."""

    key: str
    verdict: Verdict
    name: str
    model: str
    version: str
    episode_id: str
    trace_id: str
    span_id: str
    response_id: str
    end: datetime  # UTC

    @property
    def id(self) -> str:
        """Of its row."""
        return f"{OWN}judge:{self.key}:{self.episode_id}:{self.span_id}"


class Memory(Protocol):
    """Where verdicts are kept."""

    def known(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Verdicts by key, for those that there are."""

    def keep(self, judgements: Sequence[Judgement]) -> None:
        """Write down those whose id is not there yet."""


class Forgetful:
    """Keeps verdicts as long as it lives."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}

    def known(self, keys: Sequence[str]) -> dict[str, Verdict]:
        return {key: self.verdicts[key] for key in keys if key in self.verdicts}

    def keep(self, judgements: Sequence[Judgement]) -> None:
        self.verdicts |= {judgement.key: judgement.verdict for judgement in judgements}


class StoreMemory:
    """Keeps verdicts in the store."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._ids: set[str] = set()  # of rows seen or written

    def known(self, keys: Sequence[str]) -> dict[str, Verdict]:
        found = {}
        for asked in _chunks(sorted(set(keys))):
            rows = self._client.query(
                "SELECT attributes[{name:String}] AS key, groupArray(id), argMin(tuple(value, explanation, "
                "toUInt64OrZero(attributes[{prompt:String}]), toUInt64OrZero(attributes[{completion:String}])), (received, id)) "
                "FROM rewards WHERE source = 'judge' AND startsWith(id, {own:String}) AND key IN {keys:Array(String)} GROUP BY key",
                parameters={"name": _KEY, "prompt": _PROMPT, "completion": _COMPLETION, "own": f"{OWN}judge:", "keys": asked},
            ).result_rows  # fmt: skip
            for key, ids, verdict in rows:
                found[str(key)] = Verdict(*verdict)
                self._ids |= set(ids)
        return found

    def keep(self, judgements: Sequence[Judgement]) -> None:
        new = {judgement.id: judgement for judgement in judgements if judgement.id not in self._ids}
        if not new:
            return
        rows = [
            [
                judgement.id, judgement.end, judgement.trace_id, judgement.span_id, judgement.response_id, judgement.episode_id,
                judgement.name, judgement.verdict.value, "" if judgement.verdict.value is not None else "unreadable",
                judgement.verdict.why, "judge", judgement.model, judgement.version,
                {
                    _KEY: judgement.key,
                    _PROMPT: str(judgement.verdict.prompt_tokens),
                    _COMPLETION: str(judgement.verdict.completion_tokens),
                },
            ]
            for judgement in new.values()
        ]  # fmt: skip
        self._client.insert(
            "rewards",
            rows,
            column_names=[
                "id", "time", "trace_id", "span_id", "response_id", "session_id", "name", "value", "label", "explanation",
                "source", "evaluator", "evaluator_version", "attributes",
            ],
        )  # fmt: skip
        self._ids |= new.keys()


def _chunks(keys: Iterable[str]) -> Iterable[list[str]]:
    keys = list(keys)
    return (keys[first : first + _ASKED] for first in range(0, len(keys), _ASKED))
