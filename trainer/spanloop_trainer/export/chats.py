"""JSON lines of chats: OpenAI's fine-tuning, TRL, ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from spanloop_trainer.export.pairs import pairs
from spanloop_trainer.export.rows import Chosen, Message, bare, messages, text_of, tools

Line = dict[str, Any]


def openai(chosen: Chosen) -> Iterator[Line]:
    """Supervised fine-tuning (developers.openai.com, "Supervised fine-tuning", format of chats with tools): a line an answer.

    An answer is learned where it was given; in later prompts it has weight 0, or it would be learned once a later turn.
    """
    for row in chosen.rows("state", "tools", "action"):
        history = [
            {**message, "weight": 0} if message["role"] == "assistant" else message
            for message in messages(row["state"])
        ]
        yield {"messages": [*history, bare(json.loads(row["action"]))], **_tools(row)}


def openai_preference(chosen: Chosen) -> Iterator[Line]:
    """Preference fine-tuning (developers.openai.com, "Direct preference optimization"): a line a pair."""
    for better, worse in pairs(chosen):
        yield {
            "input": {"messages": messages(better["state"]), "tools": tools(better["tools"]), "parallel_tool_calls": True},
            "preferred_output": [bare(json.loads(better["action"]))],
            "non_preferred_output": [bare(json.loads(worse["action"]))],
        }  # fmt: skip


def trl(chosen: Chosen) -> Iterator[Line]:
    """TRL's prompt-completion, conversational: a line an answer."""
    for row in chosen.rows("state", "tools", "action"):
        yield {
            "prompt": _texts(messages(row["state"])),
            "completion": _texts([bare(json.loads(row["action"]))]),
            **_tools_text(row),
        }


def trl_preference(chosen: Chosen) -> Iterator[Line]:
    """TRL's preference with explicit prompt, conversational: a line a pair."""
    for better, worse in pairs(chosen):
        yield {
            "prompt": _texts(messages(better["state"])),
            "chosen": _texts([bare(json.loads(better["action"]))]),
            "rejected": _texts([bare(json.loads(worse["action"]))]),
            **_tools_text(better),
        }


def trl_unpaired(chosen: Chosen) -> Iterator[Line]:
    """TRL's unpaired preference, conversational: a line a scored answer; `label` tells whether it earned more than 0."""
    for row in chosen.rows("state", "tools", "action", "return_"):
        if row["return_"] is not None:
            yield {
                "prompt": _texts(messages(row["state"])),
                "completion": _texts([bare(json.loads(row["action"]))]),
                "label": row["return_"] > 0,
                **_tools_text(row),
            }


def _texts(history: list[Message]) -> list[Message]:
    # TRL drops keys that are null, and many chat templates ask for `content` all the same.
    return [{**message, "content": message["content"] or ""} for message in history]


def _tools(row: Line) -> Line:
    return {"tools": tools(row["tools"])} if row["tools"] else {}


def _tools_text(row: Line) -> Line:
    # TRL reads tools as JSON text too; as objects, Arrow would give every schema the fields of all others.
    return {"tools": row["tools"]} if row["tools"] else {}


_FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}


def sharegpt(chosen: Chosen) -> Iterator[Line]:
    """ShareGPT with tools, as LLaMA-Factory reads it (`data/README.md`): a line a conversation.

    One that a later call of the episode goes on with is not written again. Turns alternate: what the environment said in a row is one
    turn, several tool calls or results are a JSON list.
    """
    for row in chosen.rows("state", "tools", "action", only=_ends(chosen)):
        history = messages(row["state"])
        # Instructions in the midst of a conversation have no place in this form but with the user's words.
        leading = next((n for n, m in enumerate(history) if not _is_system(m)), len(history))
        system = "\n\n".join(text_of(message) for message in history[:leading])
        turns = _turns([*history[leading:], bare(json.loads(row["action"]))])
        # An agent that speaks first answers to nothing; readers expect a human's turn there.
        if turns and turns[0]["from"] not in ("human", "observation"):
            turns.insert(0, {"from": "human", "value": ""})
        given = {"system": system} if system else {}
        offered = (
            {"tools": json.dumps([_function(tool) for tool in tools(row["tools"])], ensure_ascii=False)}
            if row["tools"]
            else {}
        )
        yield {"conversations": turns, **given, **offered}


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _function(tool: Any) -> Any:
    return tool.get("function", tool) if isinstance(tool, dict) else tool


def _turns(history: list[Message]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    values: list[str] = []  # of the turn that is being put together

    def close() -> None:
        if turns:
            several = turns[-1]["from"] in ("observation", "function_call") and len(values) > 1
            joined = "[" + ", ".join(v if _json(v) else json.dumps(v) for v in values) + "]"
            turns[-1]["value"] = joined if several else "\n\n".join(values)
        values.clear()

    for message in history:
        calls = message.get("tool_calls") or []
        parts = (
            [(_FROM.get(message["role"], "human"), text_of(message))] if text_of(message) or not calls else []
        )
        parts += [("function_call", _call(call)) for call in calls]
        for sender, value in parts:
            if not turns or turns[-1]["from"] != sender:
                close()
                turns.append({"from": sender, "value": ""})
            values.append(value)
    close()
    return turns


def _call(call: Any) -> str:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    given = json.loads(arguments) if _json(arguments) else arguments
    return json.dumps({"name": function["name"], "arguments": given}, ensure_ascii=False)


def _json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _ends(chosen: Chosen) -> pl.DataFrame:
    """The key of rows with which a conversation ends: no row that is taken goes on with theirs."""
    key = ["trace_id", "span_id", "choice"]
    state = pl.col("state").str.slice(0, pl.col("state").str.len_chars() - 1)
    rows = chosen.scan().select(*key, "episode_id", "next_span_id", "state")
    later = rows.select(
        "episode_id", pl.col("span_id").alias("next_span_id"), pl.col("state").alias("next_state")
    )
    return (
        rows.join(later.unique(["episode_id", "next_span_id"]), on=["episode_id", "next_span_id"], how="left")
        .filter(~pl.col("next_state").str.starts_with(state).fill_null(value=False))
        .select(key)
        .collect()
    )
