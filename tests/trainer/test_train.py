"""`train` on tiny data: what it writes, that it repeats, and one clear error for each thing that cannot teach."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tests.helpers.stores import laid
from tests.trainer.algorithms.datasets import model_folder, transitions, with_tokens, write
from transformers import AutoTokenizer

from spanloop.commands.train import command
from spanloop_trainer.errors import DatasetError, TrainError
from spanloop_trainer.models import LoadedModel, find_model, load
from spanloop_trainer.settings import Settings
from spanloop_trainer.train import train

SMALL = Settings(batch_size=8, learning_rate=1e-3)


def null(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return frame.with_columns(pl.lit(None, frame.schema[name]).alias(name) for name in columns)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained from nothing on two-call episodes without rewards."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    dataset = write(folder / "data", null(transitions(40), "reward", "return_", "advantage"))
    result = train(dataset, str(model_folder(folder / "config")), folder / "model", settings=SMALL)
    assert result.algorithm == "sft"
    assert result.reason.startswith("no reward anywhere")
    return folder / "model"


@pytest.fixture(scope="module")
def loaded(base: Path) -> LoadedModel:
    return load(find_model(str(base)), seed=0)


@pytest.fixture(scope="module")
def logged(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Four episodes a task, sampled by the base model, some of them rewarded."""
    return with_tokens(transitions(32, samples=4), loaded)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_sft_joins_the_turns_and_writes_a_model(base: Path) -> None:
    record = json.loads((base / "training.json").read_text())
    assert record["algorithm"] == "sft"
    assert record["rows"] == record["retokenized"] == 80
    assert record["sequences"] == 40
    assert record["metrics"]["loss_last"] < record["metrics"]["loss"] * 1.5
    assert not (base / "checkpoints").exists()
    assert AutoTokenizer.from_pretrained(base).chat_template


@pytest.mark.parametrize("algorithm", ["sft", "reinforce", "rloo", "grpo"])
def test_same_inputs_same_weights(algorithm: str, base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", logged)
    outs = [tmp_path / "a", tmp_path / "b"]
    results = [train(dataset, str(base), out, algorithm=algorithm, settings=SMALL) for out in outs]
    first, second = (weights(out) for out in outs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], value) for name, value in weights(base).items())
    assert results[0].id == results[1].id
    assert results[0].retokenized == 0
    assert all(torch.isfinite(value).all() for value in first.values())


def test_a_finished_result_is_returned_at_once(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", logged)
    first = train(dataset, str(base), tmp_path / "out", algorithm="rloo", settings=SMALL)
    written = (tmp_path / "out" / "training.json").stat().st_mtime_ns
    again = train(dataset, str(base), tmp_path / "out", algorithm="rloo", settings=SMALL)
    assert again.resumed
    assert again.id == first.id
    assert (tmp_path / "out" / "training.json").stat().st_mtime_ns == written
    with pytest.raises(TrainError, match="holds another training result"):
        train(dataset, str(base), tmp_path / "out", algorithm="rloo", seed=1, settings=SMALL)


def test_a_foreign_folder_is_left_alone(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainError, match="is not empty"):
        train(write(tmp_path / "data", logged), str(base), tmp_path / "out", settings=SMALL)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_resumes_from_a_checkpoint(
    base: Path, logged: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path / "data", logged)
    settings = Settings(batch_size=4, learning_rate=1e-3, save_steps=2)
    train(dataset, str(base), tmp_path / "whole", algorithm="rloo", settings=settings)
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(
            "spanloop_trainer.train.save", killed
        )  # as if the process died before it wrote the model
        with pytest.raises(KeyboardInterrupt):
            train(dataset, str(base), tmp_path / "broken", algorithm="rloo", settings=settings)
    lines: list[str] = []
    train(dataset, str(base), tmp_path / "broken", algorithm="rloo", settings=settings, progress=lines.append)
    assert any(line.startswith("resuming from checkpoint-") for line in lines)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_rloo_moves_towards_what_was_rewarded(
    base: Path, loaded: LoadedModel, logged: pl.DataFrame, tmp_path: Path
) -> None:
    dataset = write(tmp_path / "data", logged)
    settings = Settings(batch_size=32, learning_rate=1e-3, epochs=3, kl_beta=0.0)
    train(dataset, str(base), tmp_path / "out", algorithm="rloo", settings=settings)
    after = with_tokens(logged, load(find_model(str(tmp_path / "out")), seed=0))
    change = pl.DataFrame(
        {
            "step": logged["step"],
            "reward": logged["reward"],
            "gain": after["logprobs"].list.sum() - logged["logprobs"].list.sum(),
        }
    ).filter(pl.col("step") == 0)
    gain = dict(change.group_by("reward").agg(pl.col("gain").mean()).rows())
    assert gain[1.0] > gain[0.0]


def test_min_reward_selects_successes(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", logged)
    result = train(
        dataset, str(base), tmp_path / "out", algorithm="sft", settings=Settings(batch_size=8, min_reward=1.0)
    )
    assert result.rows == logged.filter(pl.col("reward") == 1.0).height
    with pytest.raises(TrainError, match="the highest is 1"):
        train(dataset, str(base), tmp_path / "x", algorithm="sft", settings=Settings(min_reward=2.0))
    assert not (tmp_path / "x").exists()


def test_only_the_train_split_and_whole_answers(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    marked = logged.with_row_index().with_columns(
        split=pl.when(pl.col("index") < 10).then(pl.lit("test")).otherwise(pl.lit("train")),
        status=pl.when(pl.col("index") >= 60)
        .then(pl.lit("truncated"))
        .otherwise(pl.col("status").cast(pl.String)),
    )
    result = train(
        write(tmp_path / "data", marked.drop("index")),
        str(base),
        tmp_path / "out",
        algorithm="sft",
        settings=SMALL,
    )
    assert result.rows == logged.height - 10 - 4


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("auto", "rloo"), ("rloo", "rloo")],
)
def test_auto_takes_the_strongest(
    algorithm: str, expected: str, base: Path, logged: pl.DataFrame, tmp_path: Path
) -> None:
    result = train(
        write(tmp_path / "d", logged), str(base), tmp_path / "o", algorithm=algorithm, settings=SMALL
    )
    assert result.algorithm == expected


def test_auto_without_tokens_imitates_successes_only(
    base: Path, logged: pl.DataFrame, tmp_path: Path
) -> None:
    frame = null(logged, "prompt_ids", "completion_ids", "logprobs")
    result = train(write(tmp_path / "d", frame), str(base), tmp_path / "o", algorithm="auto", settings=SMALL)
    assert (result.algorithm, result.settings["min_reward"]) == ("sft", 1.0)
    assert result.rows == frame.filter(pl.col("reward") == 1.0).height < frame.height


def test_auto_refuses_graded_rewards_without_a_bar(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    graded = null(logged, "prompt_ids", "completion_ids", "logprobs").with_columns(
        reward=pl.int_range(pl.len()).cast(pl.Float64)
    )
    assert "--min-reward" in refused(graded, base, tmp_path, "auto").hint


def refused(frame: pl.DataFrame, base: Path, tmp_path: Path, algorithm: str) -> TrainError:
    with pytest.raises(TrainError) as caught:
        train(
            write(tmp_path / "data", frame), str(base), tmp_path / "out", algorithm=algorithm, settings=SMALL
        )
    assert caught.value.hint
    assert not (tmp_path / "out" / "training.json").exists()
    return caught.value


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo"])
def test_no_rewards(algorithm: str, base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = null(logged, "reward", "return_", "advantage")
    assert "has no rewards" in refused(frame, base, tmp_path, algorithm).message


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo"])
def test_no_tokens(algorithm: str, base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = null(logged, "prompt_ids", "completion_ids", "logprobs")
    assert "needs token ids" in refused(frame, base, tmp_path, algorithm).message


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo", "auto"])
def test_no_reward_differs(algorithm: str, base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = logged.with_columns(reward=pl.lit(1.0), advantage=pl.lit(1.0))
    assert "no reward differs" in refused(frame, base, tmp_path, algorithm).message


def test_no_group(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = logged.with_columns(task_id=pl.col("episode_id"))
    assert "no task" in refused(frame, base, tmp_path, "rloo").message


def test_no_reward_differs_within_a_task(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = logged.with_columns(task_id=pl.col("reward").cast(pl.String))
    assert "no reward differs where rloo compares" in refused(frame, base, tmp_path, "rloo").message


def test_no_train_rows(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    message = refused(logged.with_columns(split=pl.lit("test")), base, tmp_path, "sft").message
    assert "no transition to train on" in message


def test_greedy_samples_are_refused(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = logged.with_columns(sampling=pl.col("sampling").struct.with_fields(temperature=pl.lit(0.2)))
    assert "temperature 0.2" in refused(frame, base, tmp_path, "rloo").message


def test_logprobs_that_do_not_match(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    frame = logged.with_columns(logprobs=pl.col("logprobs").list.slice(1))
    assert "span span0-0" in refused(frame, base, tmp_path, "rloo").message


def test_everything_too_long(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="longer than max_length 4"):
        train(
            write(tmp_path / "d", logged),
            str(base),
            tmp_path / "o",
            algorithm="sft",
            settings=Settings(max_length=4),
        )


def test_a_folder_that_is_no_dataset(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        train(tmp_path / "nothing", str(base), tmp_path / "out")


def test_registering_needs_a_store(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="without a store"):
        train(write(tmp_path / "d", logged), str(base), tmp_path / "o", register="agents")


def test_registers_once(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    from spanloop_store import connect

    dataset = write(tmp_path / "d", logged)
    client = connect(laid(tmp_path / "store"))
    try:
        for _ in range(2):
            result = train(
                dataset,
                str(base),
                tmp_path / "o",
                algorithm="rloo",
                settings=SMALL,
                client=client,
                register="agents",
            )
            assert result.version == "agents@1"
        assert client.query("SELECT count(), any(algorithm) FROM training_runs").result_rows == [(1, "rloo")]
        child = train(
            dataset,
            "agents@1",
            tmp_path / "o2",
            algorithm="reinforce",
            settings=SMALL,
            client=client,
            register="agents",
        )
        assert (child.version, child.base) == ("agents@2", "agents@1")
    finally:
        client.close()


def test_command_line(base: Path, logged: pl.DataFrame, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", logged)
    arguments = ["--dataset", str(dataset), "--model", str(base), "--out", str(tmp_path / "o"), "--json"]
    ran = CliRunner().invoke(command, [*arguments, "--batch-size", "8", "--epochs", "0.5"])
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["algorithm"] == "rloo"
    assert record["settings"]["epochs"] == 0.5
