"""What answers look like in an export where they are not a plain text: refusals, words beside calls, broken texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.trainer.algorithms.datasets import transitions, write
from tests.trainer.test_export import TOOLS, lines

from spanloop_trainer.transform.datasets.schema import TRANSITIONS


def one_row(folder: Path, state: list[dict[str, Any]], action: dict[str, Any], **values: Any) -> Path:
    row = transitions(1).row(0, named=True) | {"state": json.dumps(state), "done": True, "next_span_id": None}
    row |= {"action": json.dumps({"role": "assistant", **action}), **values}
    return write(folder, pl.DataFrame([row], schema=TRANSITIONS))


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("state", "senders", "values"),
    [
        # Anthropic's models say what they are about to do.
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "I add.", "tool_calls": [CALL]},
             {"role": "tool", "tool_call_id": "1", "content": "5"}],
            ["human", "function_call", "observation", "gpt"], ["5", "done"],
        ),
        # The user speaks before the model has answered to the tool.
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
             {"role": "tool", "tool_call_id": "1", "content": "5"}, {"role": "user", "content": "and?"}],
            ["human", "function_call", "observation", "gpt"], ["5\n\nand?", "done"],
        ),
        # A call that nothing came back from.
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
            ["human", "function_call", "observation", "gpt"], ["", "done"],
        ),
        (
            [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "u"}],
            ["human", "gpt", "human", "gpt"], ["u", "done"],
        ),
    ],
    ids=["words beside a call", "user after tool", "no result", "speaks first"],
)  # fmt: skip
def test_sharegpt_turns_of_environment_and_model_alternate(
    state: list[dict[str, Any]], senders: list[str], values: list[str], tmp_path: Path
) -> None:
    """LLaMA-Factory 0.9.5 (`SharegptDatasetConverter`) leaves out, with a warning, a conversation in which they do not."""
    (line,) = lines(
        one_row(tmp_path / "d", state, {"content": "done"}), tmp_path / "s.jsonl", "--to", "sharegpt"
    )
    assert [turn["from"] for turn in line["conversations"]] == senders
    assert [turn["value"] for turn in line["conversations"]][-2:] == values


@pytest.mark.parametrize("form", ["trl", "sharegpt", "openai"])
def test_what_a_model_refused_with_is_its_answer(form: str, tmp_path: Path) -> None:
    """OpenAI's `refusal` stands beside an empty `content`: a chat template would render nothing, and the model learn to say nothing."""
    dataset = one_row(
        tmp_path / "d", [{"role": "user", "content": "u"}], {"content": None, "refusal": "I will not."}
    )
    (line,) = lines(dataset, tmp_path / "x.jsonl", "--to", form)
    if form == "trl":
        assert line["completion"] == [{"role": "assistant", "content": "I will not."}]
    elif form == "sharegpt":
        assert line["conversations"][-1] == {"from": "gpt", "value": "I will not."}
    else:
        assert line["messages"][-1] == {"role": "assistant", "content": None, "refusal": "I will not."}


def test_half_a_surrogate_pair_and_endless_nesting_stop_no_export(tmp_path: Path) -> None:
    for name, arguments in (("half", '{"a": "\\ud83d"}'), ("deep", "[" * 100_000)):
        function = {"name": "add", "arguments": arguments}
        action = {"content": None, "tool_calls": [{**CALL, "function": function}]}
        dataset = one_row(tmp_path / name, [{"role": "user", "content": "u"}], action)
        (line,) = lines(dataset, tmp_path / f"{name}.jsonl", "--to", "sharegpt")
        value = json.loads(line["conversations"][-1]["value"])
        assert value["arguments"] == ({"a": "\N{REPLACEMENT CHARACTER}"} if name == "half" else arguments)


def test_lines_with_new_fields_come_first(tmp_path: Path) -> None:
    """`datasets` takes the columns from the first 10 MB of a file, and fails on one that comes later."""
    rows = transitions(8).with_columns(tools=pl.lit(None, pl.String)).to_dicts()
    for place, row in enumerate(rows):
        row["state"] = json.dumps([{"role": "user", "content": f"{place}"}])
        row["action"] = json.dumps({"role": "assistant", "content": "y"})
    rows[-2]["tools"] = json.dumps(TOOLS)
    rows[-1]["state"] = json.dumps([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    dataset = write(tmp_path / "d", pl.DataFrame(rows, schema=TRANSITIONS))
    found = lines(dataset, tmp_path / "t.jsonl", "--to", "trl")
    assert [line["prompt"][0]["content"] for line in found] == ["0", "14", "", *map(str, range(1, 14))]
