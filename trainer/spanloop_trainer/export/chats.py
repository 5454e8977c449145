"""JSON lines of chats: OpenAI's fine-tuning, TRL, ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
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
    # TRL drops keys that are null, and many chat templates ask for `content` all the same; none knows `refusal`.
    return [
        {**{key: value for key, value in message.items() if key != "refusal"}, "content": _content(message)}
        for message in history
    ]


def _content(message: Message) -> Any:
    return message["content"] or message.get("refusal") or ""


def _tools(row: Line) -> Line:
    return {"tools": tools(row["tools"])} if row["tools"] else {}


def _tools_text(row: Line) -> Line:
    # TRL reads tools as JSON text too; as objects, Arrow would give every schema the fields of all others.
    return {"tools": row["tools"]} if row["tools"] else {}


_FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}
_MODEL = ("gpt", "function_call")


def sharegpt(chosen: Chosen) -> Iterator[Line]:
    """ShareGPT with tools, as LLaMA-Factory reads it (`data/README.md`): a line a conversation.

    One that a later call of the episode goes on with is not written again. Turns alternate: what the environment said in a row is one
    turn, several tool calls or results are a JSON list, and words beside a call are left out.
    """
    for row in chosen.rows("state", "tools", "action", only=_ends(chosen)):
        history = messages(row["state"])
        # Instructions in the midst of a conversation have no place in this form but with the user's words.
        leading = next((n for n, m in enumerate(history) if not _is_system(m)), len(history))
        system = "\n\n".join(text_of(message) for message in history[:leading])
        turns = _turns([*history[leading:], bare(json.loads(row["action"]))])
        # An agent that speaks first answers to nothing; readers expect a human's turn there.
        if turns and turns[0]["from"] in _MODEL:
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
    """Turns of environment and model by turns; LLaMA-Factory leaves out a conversation in which one follows its like."""
    turns: list[dict[str, str]] = []
    for sender, group in groupby(history, _sender):
        values = [value for message in group for value in _values(message)]
        several = sender in ("observation", "function_call") and len(values) > 1
        value = (
            "[" + ", ".join(v if _json(v) else json.dumps(v, ensure_ascii=False) for v in values) + "]"
            if several
            else "\n\n".join(values)
        )
        before = turns[-1]["from"] if turns else ""
        if before and sender in _MODEL and before in _MODEL:
            # The model went on by itself; what is not learned may be empty.
            turns.append({"from": "observation" if before == "function_call" else "human", "value": ""})
        elif before and sender not in _MODEL and before not in _MODEL:
            turns[-1]["value"] += f"\n\n{value}"
            continue
        turns.append({"from": sender, "value": value})
    return turns


def _sender(message: Message) -> str:
    return "function_call" if message.get("tool_calls") else _FROM.get(message["role"], "human")


def _values(message: Message) -> list[str]:
    # A turn is text or calls: what is said beside calls has no place in this form.
    return [_call(call) for call in message.get("tool_calls") or []] or [text_of(message)]


def _call(call: Any) -> str:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    given = json.loads(arguments) if _json(arguments) else arguments
    return json.dumps({"name": function["name"], "arguments": given}, ensure_ascii=False)


def _json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _ends(chosen: Chosen) -> pl.DataFrame:
    """The key of rows with which a conversation ends: no row that is taken goes on with theirs. Texts are looked at, not kept."""
    key, state = ["trace_id", "span_id", "choice"], pl.col("state")
    begun = state.str.head(-1)  # without the closing bracket
    rows = (
        chosen.scan()
        .select(*key, "episode_id", "next_span_id", length=begun.str.len_chars(), begun=begun.hash())
        .collect(engine="streaming")
    )
    before = rows.drop_nulls("next_span_id").select(
        pl.struct(key).alias("before"),
        "episode_id",
        pl.col("next_span_id").alias("span_id"),
        "length",
        "begun",
    )
    gone_on = (
        chosen.scan()
        .select("episode_id", "span_id", "state")
        .join(before.lazy(), on=["episode_id", "span_id"])
        .filter(state.str.slice(0, pl.col("length")).hash() == pl.col("begun"))
        .select(pl.col("before").struct.unnest())
        .collect(engine="streaming")
    )
    return rows.select(key).join(gone_on, on=key, how="anti", maintain_order="left")
