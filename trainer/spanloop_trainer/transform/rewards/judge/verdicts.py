"""Which verdicts a build needs, which are known, and what the others become once the judge has answered."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import Judge, RewardRule
from spanloop_trainer.transform.rewards.episode import Episode
from spanloop_trainer.transform.rewards.judge import prompts
from spanloop_trainer.transform.rewards.judge.asking import Answer, Asker
from spanloop_trainer.transform.rewards.judge.memory import Judgement, Memory, Verdict
from spanloop_trainer.transform.rewards.judge.transcripts import shortened, transcript
from spanloop_trainer.transform.rewards.verifiers import Unscored

_NOTHING = "there is nothing that the judge could read"
_ALONE = "a ranking needs two different episodes of the task"
_UNASKED = "the judge was not asked about it"
_BUDGET = "the judge's budget (max_cost) was spent"
# Written down after so many answers, so that a build that is killed loses few.
_A_BATCH = 32


class LastCall(NamedTuple):
    """Of an episode: what its verdict is written down under."""

    trace_id: str
    span_id: str
    response_id: str
    end: datetime  # UTC


class Wanted(NamedTuple):
    """One episode that one rubric is to judge."""

    rule: RewardRule
    episode_id: str
    task_id: str
    agent: str
    expected: str | None
    text: str
    last: LastCall


class Scored(NamedTuple):
    """A verdict with a value."""

    rule: RewardRule
    episode_id: str
    value: float


class Judging:
    """What one build asks its judge; buckets come one after another, in the order of episodes.

    Attributes:
        asker: counts what was asked and spent.
        verdicts: all that were needed, by key.
    """

    def __init__(self, config: Config, settings: Judge, memory: Memory, *, may_ask: bool = True) -> None:
        """
        Args:
            may_ask: False: what is not known stays unscored, nothing is spent, and nothing is written.
        """
        self._may_ask = may_ask
        self._rules = [rule for rule in config.rewards if rule.rubric]
        self._settings = settings
        self._memory = memory
        self._ranked: list[Wanted] = []
        self.asker = Asker(settings)
        self.verdicts: dict[str, Verdict] = {}

    def look(
        self, episodes: Iterable[Episode], last_calls: dict[str, LastCall]
    ) -> Iterator[Scored | Unscored]:
        """Score the episodes of a bucket, and remember those that are to be ranked.

        Raises:
            JudgeError: the judge cannot be asked.
        """
        scored: list[Wanted] = []
        for episode in episodes:
            text = transcript(episode, self._settings.max_chars)
            for rule in self._rules:
                if not text:
                    yield Unscored(rule.name, episode.id, _NOTHING, "")
                    continue
                wanted = Wanted(
                    rule,
                    episode.id,
                    episode.task_id,
                    episode.agent,
                    episode.expected,
                    text,
                    last_calls[episode.id],
                )
                (self._ranked if rule.rank else scored).append(wanted)
        yield from self._score(scored)

    def finish(self) -> Iterator[Scored | Unscored]:
        """Rank the episodes of every task and agent, as credit compares them, once all are known.

        Raises:
            JudgeError: the judge cannot be asked.
        """
        groups: dict[tuple[str, str, str], list[Wanted]] = defaultdict(list)
        for wanted in self._ranked:
            groups[wanted.rule.name, wanted.task_id, wanted.agent].append(wanted)
        rankings: list[_Ranking] = []
        for _, group in sorted(groups.items()):
            by_text: dict[str, list[Wanted]] = defaultdict(list)
            for wanted in group:
                by_text[wanted.text].append(wanted)
            if len(by_text) < 2:
                yield from (Unscored(one.rule.name, one.episode_id, _ALONE, "") for one in group)
                continue
            texts = sorted(by_text, key=_hash)
            count = -(-len(texts) // len(prompts.LETTERS))
            # Dealt out, so that no part is left with one.
            rankings += [
                self._ranking({text: by_text[text] for text in texts[n::count]}) for n in range(count)
            ]
        yield from self._rank(rankings)

    def _score(self, scored: Sequence[Wanted]) -> Iterator[Scored | Unscored]:
        by_key: dict[str, list[Wanted]] = defaultdict(list)
        for wanted in scored:
            by_key[self._key(wanted.rule, wanted.expected, wanted.text)].append(wanted)
        known = self._memory.known(list(by_key))
        open_ = [key for key in by_key if key not in known]
        questions = [
            prompts.score_question(one.rule.rubric, self._settings.scale, one.text, one.expected)
            for one in (by_key[key][0] for key in open_)
        ]
        failed: dict[str, Answer] = {}
        kept = _Batch(self._memory)

        def answered(number: int, answer: Answer) -> None:
            key = open_[number]
            if answer.text is None:
                failed[key] = answer
                return
            reading = prompts.read_score(answer.text, self._settings.scale)
            value = None if reading.values is None else reading.values[0]
            why = reading.why if value is None else prompts.reason_of(answer.text)
            known[key] = Verdict(value, why, answer.prompt_tokens, answer.completion_tokens)
            kept.add(self._judgements(key, known[key], by_key[key]))

        self._ask(questions, answered, kept)
        yield from self._results(by_key, known, failed)

    def _rank(self, rankings: Sequence[_Ranking]) -> Iterator[Scored | Unscored]:
        by_key = {key: members for ranking in rankings for key, members in ranking.members.items()}
        known = self._memory.known(list(by_key))
        open_ = [ranking for ranking in rankings if not all(key in known for key in ranking.members)]
        questions = [question for ranking in open_ for question in self._questions(ranking)]
        failed: dict[str, Answer] = {}
        answers: dict[int, Answer] = {}
        kept = _Batch(self._memory)

        def answered(number: int, answer: Answer) -> None:
            answers[number] = answer
            if number ^ 1 not in answers:
                return
            ranking, first = open_[number // 2], number & ~1
            both = (answers[first], answers[first + 1])
            if lacking := next((one for one in both if one.text is None), None):
                failed.update(dict.fromkeys(ranking.members, lacking))
                return
            for key, verdict in ranking.verdicts(both).items():
                # What was said before stays, as it will in the next build.
                known.setdefault(key, verdict)
                kept.add(self._judgements(key, verdict, by_key[key]))

        self._ask(questions, answered, kept)
        yield from self._results(by_key, known, failed)

    def _ask(
        self, questions: Sequence[prompts.Question], answered: Callable[[int, Answer], None], kept: _Batch
    ) -> None:
        if not self._may_ask:
            return
        try:
            self.asker.ask(questions, answered)
        finally:
            kept.write()

    def _results(
        self, by_key: dict[str, list[Wanted]], known: dict[str, Verdict], failed: dict[str, Answer]
    ) -> Iterator[Scored | Unscored]:
        # A content that was judged for another episode is written down for this one, too.
        again = (
            []
            if not self._may_ask
            else [
                judgement
                for key, members in by_key.items()
                if key in known
                for judgement in self._judgements(key, known[key], members)
            ]
        )
        self._memory.keep(again)
        unasked = Answer(None, _BUDGET if self._may_ask else _UNASKED, 0, 0)
        for key, members in by_key.items():
            verdict = known.get(key)
            if verdict is not None:
                self.verdicts[key] = verdict
            for one in members:
                if verdict is None:
                    why = failed.get(key, unasked)
                    yield Unscored(one.rule.name, one.episode_id, why.why, why.detail)
                elif verdict.value is None:
                    yield Unscored(one.rule.name, one.episode_id, verdict.why, "")
                else:
                    yield Scored(one.rule, one.episode_id, verdict.value)

    def _judgements(self, key: str, verdict: Verdict, members: Sequence[Wanted]) -> list[Judgement]:
        return [
            Judgement(
                key, verdict, one.rule.name, self._settings.model, one.rule.version, one.episode_id, *one.last
            )
            for one in members
        ]

    def _key(self, rule: RewardRule, expected: str | None, *content: str) -> str:
        """Equal where the judge would be asked the same."""
        settings = self._settings
        asked = [
            prompts.PROMPTS, settings.model, settings.scale, settings.request, rule.name, rule.rubric, rule.rank, rule.version,
            expected, content,
        ]  # fmt: skip
        return _hash(json.dumps(asked, sort_keys=True))

    def _ranking(self, by_text: dict[str, list[Wanted]]) -> _Ranking:
        one = next(iter(by_text.values()))[0]
        room = self._settings.max_chars // len(by_text)
        shown = {text: shortened(text, room) for text in by_text}
        # In an order that nothing but the contents decides.
        group = self._key(one.rule, one.expected, *sorted(shown.values()))
        shuffled = sorted(by_text, key=lambda text: _hash(group + text))
        keys = {text: _hash(f"{group}:{text}") for text in shuffled}
        return _Ranking({keys[text]: by_text[text] for text in shuffled}, [shown[text] for text in shuffled])

    def _questions(self, ranking: _Ranking) -> list[prompts.Question]:
        """The same in its order and in the reverse of it."""
        one = ranking.one
        return [
            prompts.rank_question(one.rule.rubric, order, one.expected)
            for order in (ranking.shown, ranking.shown[::-1])
        ]


class _Ranking(NamedTuple):
    """Episodes that are compared: of equal contents the first is shown; in the order of the first question."""

    members: dict[str, list[Wanted]]  # by the key of the verdict
    shown: list[str]  # their texts

    @property
    def one(self) -> Wanted:
        return next(iter(self.members.values()))[0]

    def verdicts(self, answers: tuple[Answer, Answer]) -> dict[str, Verdict]:
        """1 for the best, 0 for the last: the mean over both orders, so that a place in the question gains nothing."""
        count = len(self.members)
        first, second = (prompts.read_order(answer.text or "", count) for answer in answers)
        prompt = sum(answer.prompt_tokens for answer in answers) // count
        completion = sum(answer.completion_tokens for answer in answers) // count
        if first.values is None or second.values is None:
            return {key: Verdict(None, first.why or second.why, prompt, completion) for key in self.members}
        places = [(one + other) / 2 for one, other in zip(first.values, second.values[::-1], strict=True)]
        # No reason is kept: it may quote another episode, whose erasing would not find it here.
        return {
            key: Verdict(1 - place / (count - 1), "", prompt, completion)
            for key, place in zip(self.members, places, strict=True)
        }


class _Batch:
    """Verdicts on their way into the memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._waiting: list[Judgement] = []

    def add(self, judgements: Iterable[Judgement]) -> None:
        self._waiting += judgements
        if len(self._waiting) >= _A_BATCH:
            self.write()

    def write(self) -> None:
        self._memory.keep(self._waiting)
        self._waiting = []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
