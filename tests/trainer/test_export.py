"""`spanloop export`: every form as its reader takes it, and nothing but what the dataset holds."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.helpers.commands import report, spanloop
from tests.helpers.stores import laid
from tests.trainer.algorithms.datasets import TEMPLATE, transitions, write

from spanloop_store import audit, connect
from spanloop_trainer.transform import load_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Eight two-call episodes of four tasks, the second of each task with the first's prompt; one failed call."""
    rows = transitions(8, samples=2).to_dicts()
    for row in rows:
        first = row["episode_id"] <= f"e{2 * int(row['task_id'][1:]):04d}"
        state = json.loads(row["state"])
        state[0] = {"role": "user", "content": f"task {row['task_id']}"}
        row["state"] = json.dumps([{"role": "system", "content": "Count."}, *state])
        row["tools"] = json.dumps(TOOLS)
        row["reward"] = row["return_"] = row["advantage"] = 1.0 if first else 0.0
        row["reward_parts"] = [
            {"name": "exact", "value": row["reward"], "source": "rule", "evaluator": "exact", "version": "1"}
        ]
        row["next_span_id"] = None if row["step"] else row["span_id"][:-1] + "1"
        if not first and row["step"]:
            row["action"] = json.dumps({"role": "assistant", "content": "no idea", "reasoning_content": "hm"})
        if row["step"] == 0:
            row["observation"] = json.dumps([{"role": "tool", "tool_call_id": "c", "content": "5"}])
    failed = {**rows[-1], "step": 2, "span_id": "failed", "status": "error", "action": None}
    return pl.DataFrame([*rows, failed], schema=TRANSITIONS)


@pytest.fixture(scope="module")
def dataset(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("export") / "d", frame)


def lines(dataset: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    said = report("export", dataset, "--out", out, *options)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert said["records"] == len(found)
    return found


def test_openai_learns_each_answer_once(dataset: Path, tmp_path: Path) -> None:
    found = lines(dataset, tmp_path / "o.jsonl", "--to", "openai")
    assert len(found) == 16
    for line in found:
        *history, answer = line["messages"]
        assert answer["role"] == "assistant"
        assert "weight" not in answer
        assert [message.get("weight") for message in history if message["role"] == "assistant"] == [0] * (
            len(history) > 2
        )
        assert line["tools"] == TOOLS
        assert not any("reasoning_content" in message for message in line["messages"])
    (called,) = found[0]["messages"][-1]["tool_calls"]
    assert isinstance(called["function"]["arguments"], str)


def test_rows_are_chosen_by_reward_and_split(dataset: Path, tmp_path: Path) -> None:
    assert len(lines(dataset, tmp_path / "o.jsonl", "--to", "openai", "--min-reward", "1")) == 8
    none = spanloop("export", dataset, "--to", "openai", "--out", tmp_path / "n.jsonl", "--split", "test")
    assert none.exit_code == 1
    assert "no usable row is left" in str(none.exception)
    assert not (tmp_path / "n.jsonl").exists()


@pytest.mark.parametrize("form", ["openai", "trl"])
def test_pairs_share_their_prompt_and_the_better_earned_more(
    frame: pl.DataFrame, dataset: Path, tmp_path: Path, form: str
) -> None:
    found = lines(dataset, tmp_path / "p.jsonl", "--to", form, "--kind", "preference")
    # First prompts are shared; later ones hold the numbers of their own episode.
    same = frame.filter((pl.col("step") == 0) & (pl.col("status") == "ok"))
    differing = same.group_by("task_id").agg(pl.col("action").n_unique() == 2).filter("action")
    assert len(found) == differing.height > 0
    for line in found:
        prompt = line["input"]["messages"] if form == "openai" else line["prompt"]
        better, worse = (
            (line["preferred_output"], line["non_preferred_output"])
            if form == "openai"
            else (line["chosen"], line["rejected"])
        )
        task = prompt[-1]["content"].removeprefix("task ")
        rewards = {row["action"]: row["reward"] for row in same.filter(pl.col("task_id") == task).to_dicts()}
        by_call = {
            json.loads(action)["tool_calls"][0]["function"]["arguments"]: reward
            for action, reward in rewards.items()
        }
        earned = [by_call[one[0]["tool_calls"][0]["function"]["arguments"]] for one in (better, worse)]
        assert earned == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["sft", "preference", "unpaired"])
def test_trl_renders_what_was_written(dataset: Path, tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.chat_template = TEMPLATE
    out = tmp_path / "t.jsonl"
    written = lines(dataset, out, "--to", "trl", "--kind", kind)
    loaded = datasets.load_dataset(
        "json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(written)
    for row in loaded:
        assert data_utils.is_conversational(row)
        rendered = data_utils.apply_chat_template(row, tokenizer, tools=json.loads(row["tools"]))
        assert rendered["prompt"].endswith("<|im_start|>assistant\n")
        answer = row["completion" if kind != "preference" else "chosen"][0]
        shown = rendered["completion" if kind != "preference" else "chosen"]
        assert (answer["content"] or answer["tool_calls"][0]["function"]["name"]) in shown
    if kind == "unpaired":
        assert sorted(loaded["label"]) == [False] * 8 + [True] * 8


def test_sharegpt_writes_a_conversation_once_and_turns_alternate(dataset: Path, tmp_path: Path) -> None:
    found = lines(dataset, tmp_path / "s.jsonl", "--to", "sharegpt")
    assert len(found) == 8
    for line in found:
        assert [turn["from"] for turn in line["conversations"]] == [
            "human",
            "function_call",
            "observation",
            "gpt",
        ]
        assert line["system"] == "Count."
        assert json.loads(line["tools"]) == [TOOLS[0]["function"]]
        call = json.loads(line["conversations"][1]["value"])
        assert set(call["arguments"]) == {"a", "b"}


def test_sharegpt_joins_what_comes_in_a_row(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    state = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **call}, {"id": "2", **call}]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "tool", "tool_call_id": "2", "content": "six"},
    ]
    row = transitions(1).row(0, named=True) | {"state": json.dumps(state)}
    row |= {
        "action": json.dumps({"role": "assistant", "content": "done"}),
        "done": True,
        "next_span_id": None,
    }
    (line,) = lines(
        write(tmp_path / "d", pl.DataFrame([row], schema=TRANSITIONS)),
        tmp_path / "s.jsonl",
        "--to",
        "sharegpt",
    )
    values = [turn["value"] for turn in line["conversations"]]
    assert values[0] == "one\n\ntwo"
    assert json.loads(values[1]) == [{"name": "add", "arguments": {}}] * 2
    assert json.loads(values[2]) == [5, "six"]


def test_pairs_are_the_same_however_many_texts_are_held_at_a_time(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--to", "trl", "--kind", "preference")
    whole = lines(dataset, tmp_path / "a.jsonl", *options)
    monkeypatch.setattr("spanloop_trainer.export.pairs._BATCH_BYTES", 1)
    assert lines(dataset, tmp_path / "b.jsonl", *options) == whole
    assert len(whole) > 1


def test_a_dataset_is_not_overwritten(dataset: Path) -> None:
    before = (dataset / "transitions.parquet").read_bytes()
    refused = spanloop("export", dataset, "--to", "episodes", "--out", dataset / "transitions.parquet")
    assert "is a file of the dataset" in str(refused.exception)
    assert (dataset / "transitions.parquet").read_bytes() == before


def test_episodes_are_steps_that_sum_to_their_reward(
    frame: pl.DataFrame, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    report("export", dataset, "--to", "episodes", "--out", out)
    steps = pl.read_parquet(out)
    assert steps.columns == [
        "eps_id", "agent_id", "t", "obs", "actions", "rewards", "new_obs", "terminateds", "truncateds", "infos",
    ]  # fmt: skip
    whole = steps.group_by("eps_id").agg(
        pl.col("rewards").sum(), pl.col("t"), pl.col("terminateds"), pl.col("truncateds")
    )
    rewards = dict(frame.group_by("episode_id").agg(pl.col("reward").first()).iter_rows())
    for name, reward, t, terminated, truncated in whole.iter_rows():
        assert reward == rewards[name]
        assert t == [0, 1]
        assert terminated == [False, True]
        assert truncated == [False, False]
    first, second = steps.filter(pl.col("eps_id") == "e0000").to_dicts()
    assert first["new_obs"] == second["obs"]
    assert json.loads(second["new_obs"]) == [*json.loads(second["obs"]), json.loads(second["actions"])]


def test_what_one_step_earned_is_its_own(tmp_path: Path) -> None:
    """`reward` has the episode's part in every row; a step's own judgement stays with the step."""
    part = {"source": "rule", "evaluator": "e", "version": "1"}
    whole, own = {"name": "exact", "value": 1.0, **part}, {"name": "thumb", "value": 0.25, **part}
    rows = transitions(1).to_dicts()
    rows[0] |= {"reward": 1.25, "reward_parts": [whole, own], "next_span_id": rows[1]["span_id"]}
    rows[1] |= {"reward": 1.0, "reward_parts": [whole]}
    dataset = write(tmp_path / "d", pl.DataFrame(rows, schema=TRANSITIONS))
    report("export", dataset, "--to", "episodes", "--out", tmp_path / "e.parquet")
    assert pl.read_parquet(tmp_path / "e.parquet")["rewards"].to_list() == [0.25, 1.0]


def test_verl_has_a_row_a_prompt_and_the_right_answer_where_a_task_file_knows_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"id": "t0001", "prompt": "task t0001", "expected": "42"}\n')
    (tmp_path / "spanloop.toml").write_text('[[tasks]]\nfile = "t.jsonl"\nsplit = "train"\n')
    out = tmp_path / "v.parquet"
    report("export", dataset, "--to", "verl", "--out", out)
    rows = pl.read_parquet(out)
    assert rows.columns == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert rows.height == 4
    assert rows["prompt"][1].to_list()[-1] == {"role": "user", "content": "task t0001"}
    assert [model["ground_truth"] for model in rows["reward_model"]] == ["", "42", "", ""]
    info = rows["extra_info"][1]
    assert (info["index"], info["task_id"], info["episodes"], info["mean_reward"]) == (1, "t0001", 2, 0.5)


READ = """
import sys
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from verl.utils.dataset.rl_dataset import RLHFDataset

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
tokenizer.chat_template = open(sys.argv[2]).read()
config = OmegaConf.create({"cache_dir": sys.argv[3], "max_prompt_length": 100000, "filter_overlong_prompts_workers": 1})
read = RLHFDataset(data_files=sys.argv[1], tokenizer=tokenizer, config=config)
row = read[1]
print(len(read), row["raw_prompt"][-1]["content"], row["index"], row["data_source"])
"""


def test_verls_own_reader_takes_the_table(dataset: Path, tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import verl"], capture_output=True, check=False).returncode:
        pytest.skip("verl is not installed here (pip install verl)")
    out, template = tmp_path / "v.parquet", tmp_path / "template"
    report("export", dataset, "--to", "verl", "--out", out)
    template.write_text(TEMPLATE)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(out), str(template), str(tmp_path / "cache")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 task t0001 1 spanloop"


RLLIB = """
import json, sys, types
import pyarrow.parquet as pq
from ray.rllib.offline.offline_prelearner import OfflinePreLearner

reader = OfflinePreLearner.__new__(OfflinePreLearner)
reader.config = types.SimpleNamespace(
    ignore_final_observation=False, input_compress_columns=[], input_read_schema={}, is_multi_agent=False
)
table = pq.read_table(sys.argv[1])
steps = reader._map_to_episodes({name: table[name].to_pylist() for name in table.column_names})["episodes"]
print(json.dumps([[s.id_, s.get_observations(), s.get_return(), s.is_terminated] for s in steps[:2]]))
"""


def test_rllibs_own_reader_takes_the_steps(dataset: Path, tmp_path: Path) -> None:
    if subprocess.run(
        [sys.executable, "-c", "import ray.rllib"], capture_output=True, check=False
    ).returncode:
        pytest.skip("Ray RLlib is not installed here (pip install 'ray[rllib]')")
    out = tmp_path / "e.parquet"
    report("export", dataset, "--to", "episodes", "--out", out)
    done = subprocess.run(
        [sys.executable, "-c", RLLIB, str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = pl.read_parquet(out).head(2).to_dicts()
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [step["eps_id"], [step["obs"], step["new_obs"]], step["rewards"], step["terminateds"]]
        for step in steps
    ]


def test_an_export_is_in_the_audit_trail_before_it_is_written(dataset: Path, tmp_path: Path) -> None:
    url, out = laid(tmp_path / "store"), tmp_path / "o.jsonl"
    report("export", dataset, "--to", "openai", "--out", out, "--store", url, "--split", "train")
    with closing(connect(url)) as client:
        (entry,) = audit.entries(client)
    assert (entry.action, entry.subject) == ("export", str(out))
    assert entry.details["to"] == "openai"
    assert entry.details["dataset"] == load_dataset(dataset)[0].id
    refused = spanloop(
        "export", dataset, "--to", "openai", "--out", tmp_path / "n.jsonl", "--store", "chdb:///dev/null/x"
    )
    assert refused.exit_code == 1
    assert not (tmp_path / "n.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--to", "verl", "--out", "x.jsonl"], "should end with .parquet"),
        (["--to", "sharegpt", "--out", "x.jsonl", "--kind", "preference"], "has no form for preference"),
        (["--to", "openai", "--out", "x.jsonl", "--kind", "unpaired"], "has no form for unpaired"),
    ],
    ids=["name", "sharegpt", "openai"],
)
def test_a_form_that_does_not_exist_is_refused(dataset: Path, options: list[str], why: str) -> None:
    assert why in str(spanloop("export", dataset, *options).exception)
