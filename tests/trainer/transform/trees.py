"""Spans made in memory as `read` gives them, and random trees of them of which it is known what they are.

`World` is a program that is watched: it starts runs, and each run makes calls, uses tools, calls other agents, hands over to them,
fails and tries again. What it did is written down apart from the spans, and tests compare the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.piece import Piece, canonical, shifted, together
from spanloop_trainer.transform.pieces.texts import Texts, fetch
from spanloop_trainer.transform.pipeline import Transitions, transform_pieces
from spanloop_trainer.transform.reading.read import Spans

Json = dict[str, Any]
BEGIN = datetime(2026, 1, 1)
CALLS = {
    "trace_id": pl.String, "span_id": pl.String, "parent_span_id": pl.String, "start": pl.Datetime("ns"),
    "duration_ns": pl.UInt64, "service": pl.String, "instance": pl.String, "session": pl.String, "rollout": pl.String,
    "explicit_task": pl.String, "failed": pl.Boolean, "error_type": pl.String, "own_served_version": pl.String,
    "input": pl.List(pl.String), "output": pl.List(pl.String), "has_content": pl.Boolean, "invalid": pl.Boolean,
    "request_model": pl.String, "response_model": pl.String, "response_id": pl.String, "temperature": pl.Float64,
    "top_p": pl.Float64, "max_tokens": pl.Int64, "seed": pl.Int64, "has_usage": pl.Boolean,
    "finish_reasons": pl.List(pl.String), "span_agent": pl.String, "input_verbatim": pl.String,
    "output_verbatim": pl.String, "tools": pl.String, "own_prompt_ids": pl.List(pl.Int32),
    "own_completion_ids": pl.List(pl.List(pl.Int32)), "own_logprobs": pl.List(pl.List(pl.Float64)), "flags": pl.UInt16,
    "flavour": pl.String,
}  # fmt: skip
GATEWAY = {
    "trace_id": pl.String, "span_id": pl.String, "parent_span_id": pl.String, "start": pl.Datetime("ns"),
    "in_window": pl.Boolean, "response_id": pl.String, "served_version": pl.String, "prompt_version": pl.String,
    "prompt_requested": pl.String, "prompt_ids": pl.List(pl.Int32), "completion_ids": pl.List(pl.List(pl.Int32)),
    "logprobs": pl.List(pl.List(pl.Float64)), "gateway_seed": pl.Int64, "gateway_temperature": pl.Float64,
    "gateway_top_p": pl.Float64, "gateway_max_tokens": pl.Int64,
}  # fmt: skip
ANCESTORS = {
    "trace_id": pl.String, "span_id": pl.String, "parent_span_id": pl.String, "start": pl.Datetime("ns"),
    "is_agent": pl.Boolean, "is_tool": pl.Boolean, "is_chain": pl.Boolean, "agent_name": pl.String, "agent_session": pl.String, "rollout_above": pl.String, "task_above": pl.String,
}  # fmt: skip
REWARDS = {
    "id": pl.String, "time": pl.Datetime("ns"), "trace_id": pl.String, "span_id": pl.String, "response_id": pl.String,
    "session_id": pl.String, "name": pl.String, "value": pl.Float64, "source": pl.String, "evaluator": pl.String,
    "version": pl.String,
}  # fmt: skip
TASKS = {"task_id": pl.String, "prompt": pl.String, "expected": pl.String, "split": pl.String}


def user(text: str) -> Json:
    return {"role": "user", "parts": [{"type": "text", "content": text}]}


def system(text: str) -> Json:
    return {"role": "system", "parts": [{"type": "text", "content": text}]}


def said(text: str) -> Json:
    return {"role": "assistant", "parts": [{"type": "text", "content": text}]}


def used(name: str, arguments: Json, call_id: str) -> Json:
    part = {"type": "tool_call", "name": name, "id": call_id, "arguments": arguments}
    return {"role": "assistant", "parts": [part]}


def result(call_id: str, text: str) -> Json:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": text}]}


@dataclass
class Recorder:
    """Takes down spans; a span's id is its number."""

    rows: list[Json] = field(default_factory=list)
    ancestors: list[Json] = field(default_factory=list)
    gateway: list[Json] = field(default_factory=list)

    def span(
        self,
        trace: str,
        parent: str = "",
        *,
        agent: str | None = None,
        tool: bool = False,
        chain: bool = False,
        session: str | None = None,
        at: float = 0,
        name: str = "",
        is_agent: bool = False,
        task: str | None = None,
        rollout: str | None = None,
    ) -> str:
        """A span that is no model call, of an agent if it has a name; gives its id."""
        span = name or f"n{len(self.ancestors)}"
        self.ancestors.append(
            {
                "trace_id": trace, "span_id": span, "parent_span_id": parent, "start": BEGIN + timedelta(seconds=at),
                "is_agent": agent is not None or is_agent, "is_tool": tool, "is_chain": chain, "agent_name": agent,
                "agent_session": session, "rollout_above": rollout, "task_above": task,
            }
        )  # fmt: skip
        return span

    def call(
        self,
        trace: str,
        history: Sequence[Json],
        *answers: Json,
        at: float,
        lasts: float = 0.5,
        parent: str = "",
        name: str = "",
        **facts: Any,
    ) -> str:
        """A model call; no answer and no `error_type` looks like a stream that was cut. Gives its id."""
        span = name or f"n{len(self.ancestors)}"
        row: Json = {
            "trace_id": trace, "span_id": span, "parent_span_id": parent, "start": BEGIN + timedelta(seconds=at),
            "duration_ns": int(lasts * 1e9), "service": "agent", "instance": "i1", "failed": "error_type" in facts,
            "input": [json.dumps(message) for message in history],
            "output": [json.dumps({**answer, "finish_reason": "stop"}) for answer in answers],
            "has_content": bool(history), "invalid": False, "response_id": f"r-{trace}-{span}" if answers else None,
            "response_model": "m", "has_usage": bool(answers), "finish_reasons": [], "input_verbatim": "", "request_model": "",
            "output_verbatim": "", "tools": "", "own_prompt_ids": [], "own_completion_ids": [], "own_logprobs": [], "flags": 0,
            "flavour": "gen_ai", **facts,
        }  # fmt: skip
        self.rows.append(row)
        self.span(trace, parent, name=span, at=at)
        return span

    def spans(self) -> Spans:
        """As `read_spans` would give them."""
        rows = [{name: row.get(name) for name in CALLS} for row in self.rows]
        gateway = [{name: row.get(name) for name in GATEWAY} for row in self.gateway]
        counts = {
            "spans": len(self.ancestors) + len(gateway), "rows_again": 0, "gateway": len(gateway), "model_calls": len(rows),
        }  # fmt: skip
        return Spans(
            pl.DataFrame(rows, schema=CALLS, orient="row"), pl.DataFrame(gateway, schema=GATEWAY, orient="row"),
            pl.DataFrame(self.ancestors, schema=ANCESTORS, orient="row"), counts,
        )  # fmt: skip


class Buckets(NamedTuple):
    """Texts in memory, given out for some episodes at a time."""

    texts: pl.DataFrame
    tokens: pl.DataFrame
    size: int

    def buckets(self, calls: pl.DataFrame) -> Any:
        ids = calls["episode_id"].unique().sort()
        for first in range(0, max(len(ids), 1), self.size):
            some = calls.filter(pl.col("episode_id").is_in(ids[first : first + self.size].implode()))
            yield fetch(some, self.texts, self.tokens)


def run(
    recorder: Recorder,
    *,
    seed: int | None = None,
    pieces: int = 1,
    bucket: int = 1_000_000,
    config: Config | None = None,
    tasks: Sequence[Json] = (),
) -> tuple[pl.DataFrame, Transitions]:
    """The rows of the contract, and what they were made from.

    Args:
        seed: of the order in which the spans come; None: as they were recorded.
        pieces: how many the spans are cut into, by trace.
        bucket: episodes at a time.
    """
    spans = recorder.spans()
    if seed is not None:
        spans = Spans(
            *(frame.sample(fraction=1, shuffle=True, seed=seed) for frame in (spans.calls, spans.gateway, spans.ancestors)),
            spans.counts,
        )  # fmt: skip
    cut = [canonical(_part(spans, number, pieces)) for number in range(pieces)]
    slim = together([piece.slim for piece in cut])
    texts: Texts = Buckets(
        numbered_texts(cut, "texts", "call"), numbered_texts(cut, "tokens", "tokens"), bucket
    )
    given = pl.DataFrame([{name: task.get(name) for name in TASKS} for task in tasks], schema=TASKS)
    made = transform_pieces(
        slim, texts, pl.DataFrame(schema=REWARDS), given, config or Config(), agents=(), funnel=Funnel()
    )
    return pl.concat(list(made.frames())), made


def _part(spans: Spans, number: int, pieces: int) -> Spans:
    if pieces == 1:
        return spans
    mine = pl.col("trace_id").hash(seed=7) % pieces == number
    frames = [frame.filter(mine) for frame in (spans.calls, spans.gateway, spans.ancestors)]
    return Spans(*frames, spans.counts if not number else dict.fromkeys(spans.counts, 0))


def numbered_texts(pieces: Sequence[Piece], name: str, key: str) -> pl.DataFrame:
    if len(pieces) == 1:
        return getattr(pieces[0], name)
    return pl.concat([shifted(getattr(piece, name), number, key) for number, piece in enumerate(pieces)])


# A step of a run: "tool", "fail" (and try again), "inside" and "elsewhere" (twins), "hand over", or a list: the steps of an agent
# that is called as a tool.
Step = Any


class Plan(NamedTuple):
    """What a run will do."""

    style: str  # "plain": every call its own trace; "agent": a trace below agents; "session", "rollout": such, with an id
    at: int  # seconds
    every: int  # seconds between calls
    prompt: int
    steps: list[Step]


class Truth(NamedTuple):
    """What is known of a call."""

    episode: str
    parent: str | None
    agent: str
    next: str | None  # in its own conversation
    observation: Json | None
    status: str
    task: str


@dataclass
class World:
    """Carries out plans, and writes down what happened."""

    spans: Recorder = field(default_factory=Recorder)
    truth: dict[str, Truth] = field(default_factory=dict)
    twins: int = 0
    conversations: int = 0
    clock: float = 0.0
    every: int = 1

    def carry_out(self, number: int, plan: Plan) -> None:
        """One run of its own."""
        self.clock, self.every = plan.at + number / 100, plan.every
        # Two runs of one prompt cannot be told apart where one fails before it has said anything.
        prompt = f"p{number}!" if "fail" in plan.steps[:1] else f"p{plan.prompt}"
        trace = f"t{number}"
        if plan.style == "plain":
            self.converse(plan.style, trace, "", prompt, plan.steps, None, prompt)
            return
        facts: Json = {"session": trace} if plan.style == "session" else {}
        root = self.spans.span(trace, is_agent=True, **facts)
        episode = {"session": f"{trace}@i1", "rollout": f"run {trace}", "agent": f"{trace}-{root}"}[
            plan.style
        ]
        self.converse(plan.style, trace, root, prompt, plan.steps, (episode, None), prompt)

    def converse(
        self,
        style: str,
        trace: str,
        above: str,
        prompt: str,
        steps: list[Step],
        of: tuple[str, str | None] | None,
        task: str,
    ) -> None:
        """The calls of one agent, and of those to which it hands over.

        Args:
            above: the span of the run.
            of: its episode and that one's parent; None: the episode has the name of its first call.
        """
        self.conversations += 1
        me = f"agent{self.conversations}" if above else "agent"
        span = self.spans.span(trace, above, agent=me) if above else ""
        messages = [system(f"You are {me}."), user(prompt)] if above else [user(prompt)]
        made: list[tuple[str, str, Json | None]] = []  # call, status, what it was answered with
        rest: list[Step] | None = None  # what is left for the agent to which it hands over
        for place, step in enumerate([*steps, "answer"]):
            name = f"{trace}c{len(self.spans.ancestors)}"
            if step == "fail":
                self.ask(style, trace, span, messages, None, name, "")
                made.append((name, "error", None))
                name = f"{trace}c{len(self.spans.ancestors)}"
            if step == "answer":
                self.ask(style, trace, span, messages, said(f"{name} is done"), name, "")
                made.append((name, "ok", None))
                break
            answer = used("do", {"what": name}, f"id-{name}")
            self.ask(style, trace, span, messages, answer, name, step if isinstance(step, str) else "")
            if step == "hand over" and above:
                made.append((name, "ok", None))
                rest = [*steps[place + 1 :]]
                break
            back = result(f"id-{name}", f"result of {name}")
            made.append(
                (name, "ok", {"role": "tool", "tool_call_id": f"id-{name}", "content": f"result of {name}"})
            )
            tool = self.spans.span(trace, span, tool=True) if above else ""
            if isinstance(step, list):
                self.called(style, trace, tool, f"{name} wants this", step, of, task)
            messages = [*messages, answer, back]
        self.note(made, of or (f"{trace}x{made[0][0]}-{made[0][0]}", None), me, task)
        if rest is not None:
            self.converse(style, trace, above, prompt, rest, of, task)

    def called(
        self,
        style: str,
        trace: str,
        tool: str,
        prompt: str,
        steps: list[Step],
        of: tuple[str, str | None] | None,
        task: str,
    ) -> None:
        """An agent called as a tool; a plain loop leaves no trace of who called it."""
        if style == "plain":
            self.converse(style, trace, "", prompt, steps, None, prompt)
            return
        assert of is not None
        name = f"s{len(self.spans.ancestors)}"
        root = self.spans.span(trace, tool, is_agent=True, session=name if style == "session" else None)
        episode = {"session": f"{name}@i1", "rollout": of[0], "agent": f"{trace}-{root}"}[style]
        parent = None if style == "rollout" else of[0]
        self.converse(style, trace, root, prompt, steps, (episode, parent), task)

    def ask(
        self,
        style: str,
        trace: str,
        span: str,
        messages: list[Json],
        answer: Json | None,
        name: str,
        twin: str,
    ) -> None:
        """One model call, with its twin."""
        facts: Json = {"rollout": f"run {trace}"} if style == "rollout" else {}
        if not span:
            trace = f"{trace}x{name}"
        if answer is None:
            facts["error_type"] = "RateLimitError"
        answers = [answer] if answer else []
        above = span
        if twin == "inside":
            above = self.spans.call(
                trace, messages, *answers, at=self.clock, parent=span, **{**facts, "response_id": None}
            )
            self.twins += 1
        self.spans.call(
            trace, messages, *answers, at=self.clock + 0.01, lasts=0.4, parent=above, name=name, **facts
        )
        if twin == "elsewhere":
            self.spans.call(
                f"{trace}y",
                messages,
                *answers,
                at=self.clock + 0.02,
                lasts=0.3,
                **{**facts, "response_id": f"r-{trace}-{name}"},
            )
            self.twins += 1
        self.clock += self.every

    def note(
        self, made: list[tuple[str, str, Json | None]], of: tuple[str, str | None], agent: str, task: str
    ) -> None:
        for place, (name, status, answered) in enumerate(made):
            later = [one for one, its_status, _ in made[place + 1 :] if its_status == "ok" or status != "ok"]
            self.truth[name] = Truth(*of, agent, later[0] if later else None, answered, status, task)
