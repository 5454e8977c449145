"""Items of the Responses API as a chat, and how calls go on from them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from spanloop_trainer.transform.flavours import Flag
from spanloop_trainer.transform.reading.messages import read_messages

from .conftest import result, said, user

Json = dict[str, Any]


def called(*calls: tuple[str, str]) -> Json:
    parts = [{"type": "tool_call", "id": identity, "name": name, "arguments": {}} for identity, name in calls]
    return {"role": "assistant", "parts": parts}


def read(*turns: tuple[list[Json], Json], kind: str = "resp") -> list[Json]:
    """Calls with these prompts and answers, in order."""
    frame = pl.DataFrame(
        {
            "input": [[json.dumps(message, separators=(",", ":")) for message in prompt] for prompt, _ in turns],
            "output": [[json.dumps(answer, separators=(",", ":"))] for _, answer in turns],
            "response_id": [f"{kind}_{number}" for number in range(len(turns))],
        }
    ).with_columns(
        pl.lit("gen_ai").alias("flavour"), pl.lit("").alias("tools"), pl.lit(value=False).alias("invalid"),
        pl.lit("").alias("input_verbatim"), pl.lit("").alias("output_verbatim"), pl.lit(0, pl.UInt8).alias("flags"),
    )  # fmt: skip
    calls = read_messages(frame).to_dicts()
    return [{**call, "messages": [json.loads(message) for message in call["messages"]]} for call in calls]


def goes_on(before: Json, after: Json) -> bool:
    return before["answers"][0]["code"] in [prefix["code"] for prefix in after["prefixes"]]


FIRST = [user("Weather?")]
ITEMS = [called(("fc_1", "rain")), called(("fc_2", "wind"))]
RESULTS = [result("call_1", "dry"), result("call_2", "calm")]
LATER = [*FIRST, *ITEMS, *RESULTS]


@pytest.mark.parametrize("ids", ["fc", "call"])
def test_parallel_calls_are_one_message_whose_ids_are_those_of_the_results(ids: str) -> None:
    """The history has ids of the record; the answer has them too (`openai`), or the API's (`openai-agents`)."""
    calls = read(
        (FIRST, called((f"{ids}_1", "rain"), (f"{ids}_2", "wind"))),
        (LATER, said("Fine.")),
        ([*LATER, said("Fine."), user("And now?")], said("Still.")),
    )
    assert [message["role"] for message in calls[1]["messages"]] == ["user", "assistant", "tool", "tool"]
    made = calls[1]["messages"][1]["tool_calls"]
    assert [(call["id"], call["function"]["name"]) for call in made] == [
        ("call_1", "rain"),
        ("call_2", "wind"),
    ]
    assert "paired_by_order" in Flag(calls[1]["flags"]).names()
    assert all(goes_on(before, after) for before, after in pairwise(calls))


def test_results_that_name_their_calls_keep_them_in_any_order() -> None:
    items = [called(("call_1", "rain")), called(("fc_2", "wind")), called(("call_3", "sun"))]
    results = [result("call_3", "much"), result("call_2", "calm"), result("call_1", "dry")]
    [call] = read(([*FIRST, *items, *results], said("Fine.")))
    assert [one["id"] for one in call["messages"][1]["tool_calls"]] == ["call_1", "call_2", "call_3"]


def test_a_call_without_result_does_not_shift_those_of_later_turns() -> None:
    again = [called(("fc_5", "rain")), result("call_5", "dry")]
    [call] = read(([*LATER[:-1], said("Hm."), *again], said("Fine.")))
    ids = [one["id"] for message in call["messages"] for one in message.get("tool_calls", [])]
    assert ids == ["call_1", "fc_2", "call_5"]


def test_a_text_and_a_call_of_one_turn_are_one_message() -> None:
    [call] = read(([*FIRST, said("Let me see."), called(("fc_1", "rain")), RESULTS[0]], said("Fine.")))
    [_, turn, _] = call["messages"]
    assert (turn["content"], len(turn["tool_calls"])) == ("Let me see.", 1)


def test_interleaved_runs_with_ids_of_the_record_come_apart() -> None:
    """The same question twice at once: ids tell which goes on from which."""
    runs = [(called((f"fc_{run}", "rain")), result(f"call_{run}", "dry")) for run in "ab"]
    calls = read(
        *((FIRST, answer) for answer, _ in runs),
        *(([*FIRST, answer, back], said("Fine.")) for answer, back in reversed(runs)),
    )
    assert [[goes_on(calls[first], calls[later]) for later in (2, 3)] for first in (0, 1)] == [
        [False, True],
        [True, False],
    ]


def test_a_chat_with_two_messages_of_the_assistant_stays() -> None:
    [call] = read(([*FIRST, said("One."), said("Two."), user("Go on.")], said("Three.")), kind="chatcmpl")
    assert [message["content"] for message in call["messages"]] == ["Weather?", "One.", "Two.", "Go on."]
