"""Our offline policy gradient equals the formulas: loss and every gradient, joined turns or not."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from datasets import Dataset
from tests.trainer.algorithms import reference_loss
from tests.trainer.algorithms.datasets import tiny_model, transitions, with_tokens

from spanloop_trainer.algorithms.common import RunContext, silent
from spanloop_trainer.algorithms.evidence import Evidence, select_rows
from spanloop_trainer.algorithms.policy_gradient import (
    LoggedPolicyTrainer,
    collate,
    grpo_config,
    reference_logps,
    train_policy_gradient,
)
from spanloop_trainer.algorithms.sequences import Call, TrainingSequence, build_sequences
from spanloop_trainer.models import LoadedModel
from spanloop_trainer.settings import Settings

# Neither is a default of TRL's configuration: a setting that never reaches it must show.
EPSILON, BETA = 0.25, 0.1
ALGORITHMS = ("reinforce", "rloo", "grpo")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("model"), transitions(8))


def batch_of(algorithm: str, seed: int, loaded: LoadedModel) -> pl.DataFrame:
    """Four tasks of three episodes; behaviour probabilities far enough off that clipping is active."""
    frame = with_tokens(transitions(12, seed=seed, samples=3), loaded, shift=0.35)
    settings = Settings().resolved(algorithm, fresh_weights=False)
    return select_rows(frame, algorithm, settings, Evidence.of(frame, Path("test")))


def calls_of(rows: pl.DataFrame) -> list[Call]:
    return [
        Call(
            r["episode_id"], r["step"], 0, r["prompt_ids"], r["completion_ids"], r["logprobs"], r["advantage"]
        )
        for r in rows.to_dicts()
    ]


def drifted(loaded: LoadedModel, sequences: list[TrainingSequence]) -> list[list[float]]:
    """Reference log-probabilities of a model a little away from the one that is trained."""
    generator = torch.Generator().manual_seed(7)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        logps = reference_logps(loaded, sequences, batch_size=5)
        for name, p in loaded.model.named_parameters():
            p.copy_(before[name])
    return logps


def ours(
    loaded: LoadedModel, sequences: list[TrainingSequence], denominator: float, out: Path
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients as `train` computes them, for one batch of everything."""
    reference = drifted(loaded, sequences)
    rows = [
        {
            "input_ids": s.input_ids,
            "loss_mask": s.loss_mask,
            "logps": s.logps,
            "advantages": s.advantages,
            "reference_logps": reference[i],
        }
        for i, s in enumerate(sequences)
    ]
    settings = Settings(batch_size=len(rows), kl_beta=BETA, clip_epsilon=EPSILON).resolved(
        "rloo", fresh_weights=False
    )
    forward = loaded.model.forward
    trainer = LoggedPolicyTrainer(
        model=loaded.model,
        args=grpo_config(settings, RunContext(out, 0, silent), steps=1),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        denominator=denominator,
        kl_beta=BETA,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loaded.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    loaded.model.forward = forward
    return loss.item(), gradients(loaded)


def gradients(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad()
    return found


def theirs(
    loaded: LoadedModel, algorithm: str, rows: pl.DataFrame, denominator: float, **mutation: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """The reference on the same rows, its advantages from the raw rewards."""
    calls = calls_of(rows)
    single = build_sequences(calls, merge=False)
    reference = drifted(loaded, single)
    episodes = rows.unique("episode_id", maintain_order=True)
    advantage = dict(
        zip(
            episodes["episode_id"],
            reference_loss.episode_advantages(
                algorithm, episodes["task_id"].to_list(), episodes["reward"].to_list()
            ),
            strict=True,
        )
    )
    inputs = [
        (
            call.prompt_ids,
            call.completion_ids,
            advantage[call.episode_id],
            torch.tensor(call.logps),
            torch.tensor(ref[len(call.prompt_ids) :]),
        )
        for call, ref in zip(calls, reference, strict=True)
    ]
    loaded.model.zero_grad()
    arguments = {"epsilon": EPSILON, "beta": BETA, "denominator": denominator, **mutation}
    loss = reference_loss.loss(loaded.model, inputs, **arguments)
    loss.backward()
    return loss.item(), gradients(loaded)


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def constant(rows: pl.DataFrame) -> float:
    return float(rows["completion_ids"].list.len().sum())


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equals_the_formulas(
    algorithm: str, seed: int, merge: bool, loaded: LoadedModel, tmp_path: Path
) -> None:
    rows = batch_of(algorithm, seed, loaded)
    sequences = build_sequences(calls_of(rows), merge=merge)
    assert len(sequences) == (12 if merge else 24)
    loss, grads = ours(loaded, sequences, constant(rows), tmp_path)
    expected, expected_grads = theirs(loaded, algorithm, rows, constant(rows))
    assert loss == pytest.approx(expected, abs=1e-6)
    assert largest_difference(grads, expected_grads) < 1e-6
    assert max(float(g.abs().max()) for g in grads.values()) > 1e-3


@pytest.mark.parametrize(
    "mutation",
    [
        {"epsilon": 10.0},
        {"epsilon": 0.2},
        {"mask_prompt": False},
        {"beta": 0.0},
        {"correct_kl": False},
        {"denominator": 12.0},
    ],
    ids=lambda mutation: next(iter(mutation)),
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_altered_formula_is_noticed(
    algorithm: str, mutation: dict[str, Any], loaded: LoadedModel, tmp_path: Path
) -> None:
    rows = batch_of(algorithm, 1, loaded)
    loss, grads = ours(loaded, build_sequences(calls_of(rows), merge=True), constant(rows), tmp_path)
    arguments = {"denominator": constant(rows), **mutation}
    altered, altered_grads = theirs(loaded, algorithm, rows, **arguments)
    # Where a token is clipped either way, another ε moves the loss and no gradient.
    assert max(abs(loss - altered), largest_difference(grads, altered_grads)) > 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_has_the_loss_of_the_formulas(algorithm: str, loaded: LoadedModel, tmp_path: Path) -> None:
    """One step over everything: the run's own normaliser and ε. It starts at the reference, so there is no KL yet."""
    rows = batch_of(algorithm, 1, loaded)
    sequences = build_sequences(calls_of(rows), merge=True)
    settings = Settings(batch_size=len(sequences), kl_beta=BETA, clip_epsilon=EPSILON, epochs=1)
    metrics = train_policy_gradient(
        LoadedModel(copy.deepcopy(loaded.model), loaded.tokenizer),
        sequences,
        settings.resolved(algorithm, fresh_weights=False),
        RunContext(tmp_path, 0, silent),
        name=algorithm,
    )
    expected, _ = theirs(loaded, algorithm, rows, constant(rows), beta=0.0)
    assert metrics["steps"] == 1
    assert metrics["loss"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected) > 1e-3


def test_reference_is_short_and_independent() -> None:
    source = inspect.getsource(reference_loss)
    assert len(source.splitlines()) <= 45
    assert "import trl" not in source
    assert "spanloop" not in source


def test_collate_masks_what_was_not_sampled() -> None:
    row: dict[str, Any] = {
        "input_ids": [5, 6, 7, 8, 9],
        "loss_mask": [0, 0, 1, 0, 1],
        "logps": [0.0, 0.0, -1.0, 0.0, -2.0],
        "advantages": [0.0, 0.0, 0.5, 0.0, -0.5],
        "reference_logps": [],
    }
    short = {**row, **{key: row[key][:3] for key in ("input_ids", "loss_mask", "logps", "advantages")}}
    batch = SimpleNamespace(**collate([row, short], pad_token_id=0, denominator=3.0))
    assert batch.prompt_ids.tolist() == [[5, 6], [5, 6]]
    assert batch.completion_ids.tolist() == [[7, 8, 9], [7, 0, 0]]
    assert batch.completion_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.tool_mask.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert batch.advantages.tolist() == [[0.5, 0.0, -0.5], [0.5, 0.0, 0.0]]
