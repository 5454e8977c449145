"""What a verifier or a judge sees of one episode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import polars as pl

from spanloop_trainer.transform.rewards.facts import EPISODE

Message = dict[str, Any]  # in OpenAI chat form


@dataclass(frozen=True)
class Call:
    """One model call.

    Attributes:
        step: place in the episode, from 0.
        status: `ok`, `error`, `truncated` or `invalid`.
        error_type: None: it did not fail.
        messages: the prompt.
        answer: the assistant message that the episode went on with; None: there is none.
        tools: schemas that were offered, OpenAI form.
        duration_s: seconds.
    """

    span_id: str
    step: int
    status: str
    error_type: str | None
    messages: tuple[Message, ...]
    answer: Message | None
    tools: tuple[dict[str, Any], ...]
    duration_s: float


@dataclass(frozen=True)
class Episode:
    """One run of an agent on one task.

    Attributes:
        expected: of the task file, as text; None: the task is in no file, or says none.
        task: the other fields of the task file by name; empty: the task is in no file.
        answer: text of the last answer; None: it has no text, or the last call failed.
        status, finish_reason: of the last call.
        calls: all, in order.
        called: another run called this one: what the task file says is about that one.
    """

    id: str
    task_id: str
    expected: str | None
    task: Mapping[str, Any]
    agent: str
    service: str
    policy_version: str | None
    split: str
    answer: str | None
    status: str
    finish_reason: str | None
    duration_s: float
    calls: tuple[Call, ...]
    called: bool = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as the last readable call shows it: its prompt and its answer."""
        for call in reversed(self.calls):
            if call.messages:
                return call.messages + ((call.answer,) if call.answer else ())
        return ()

    @property
    def prompt(self) -> str:
        """Text of the first user message; empty: there is none."""
        for call in self.calls:
            for message in call.messages:
                if message.get("role") == "user":
                    return text_of(message)
        return ""

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """Those that the last call was offered."""
        return self.calls[-1].tools


def text_of(message: Message) -> str:
    """The text of a message, whether it is one string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))


def episodes_of(calls: pl.DataFrame, facts: pl.DataFrame) -> Iterator[Episode]:
    """The episodes of a bucket one after another, in the order of `episode_id`.

    Args:
        calls: a bucket of whole episodes.
        facts: of `facts.episode_facts`, for all of them.
    """
    calls = calls.select(
        "row", "episode_id", "span_id", "step", "status", "error_type", "messages", "tools_json", "called",
        pl.col("chats").list.get(pl.col("taken"), null_on_oob=True).alias("chat"),
        (pl.col("duration_ns").cast(pl.Int64) / 1e9).alias("duration_s"),
    ).sort("episode_id", "row")  # fmt: skip
    runs = calls.group_by("episode_id", maintain_order=True)
    for (_, run), row in zip(runs, facts.sort("episode_id").iter_rows(named=True), strict=True):
        yield Episode(
            id=row["episode_id"],
            task_id=row["task_id"],
            expected=row["expected"],
            task=MappingProxyType(task_of(row)),
            agent=row["agent"],
            service=row["service"],
            policy_version=row["policy_version"],
            split=row["split"],
            answer=row["answer"],
            status=row["status"],
            finish_reason=row["finish_reason"],
            duration_s=row["duration_s"],
            calls=tuple(_call(call) for call in run.iter_rows(named=True)),
            called=run["called"][0],
        )


def task_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task that are not null, without `task_`; bytes are JSON (see `tasks.read_tasks`)."""
    return {
        name.removeprefix("task_"): json.loads(value) if isinstance(value, bytes) else value
        for name, value in row.items()
        if name.startswith("task_") and name not in EPISODE and value is not None
    }


def _call(row: dict[str, Any]) -> Call:
    return Call(
        span_id=row["span_id"],
        step=row["step"],
        status=row["status"],
        error_type=row["error_type"],
        messages=tuple(json.loads(message) for message in row["messages"] or ()),
        answer=json.loads(row["chat"]) if row["chat"] else None,
        tools=tuple(json.loads(row["tools_json"])) if row["tools_json"] else (),
        duration_s=row["duration_s"],
    )
