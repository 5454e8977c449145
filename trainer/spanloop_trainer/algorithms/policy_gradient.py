"""Offline policy gradient from logged transitions: TRL's GRPO loss, fed by us instead of by its own rollouts.

With r = π(token) / behaviour(token), A the advantage of the token's call, and ρ = reference(token) / π(token), a
batch's loss is

    1/D · Σ over completion tokens of [ -min(r A, clip(r, 1-ε, 1+ε) A) + β r (ρ - log ρ - 1) ]

where the KL term is TRL's estimator with its importance correction (arXiv 2512.02556, section 3.1). `reinforce`,
`rloo` and `grpo` differ in A alone.

Normaliser: D is one constant of the run, batch_size times the mean number of completion tokens a sequence. No
sequence's and no batch's own length enters (the bias that Dr. GRPO removes, arXiv 2503.20783), so joined turns have
the gradient of the calls one by one. TRL takes any such D through the `dapo` loss, whose denominator comes with the
batch as `num_items_in_batch`.

Left out: several updates on one batch with fresh behaviour probabilities (the log has only one), sequence-level
ratios (one bad token would silence a whole episode), entropy bonus.

This leans on methods of TRL that are not public; tests/trainer/algorithms/test_trl_contract.py names them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from spanloop_trainer.algorithms.common import (
    Metrics,
    RunContext,
    RunLog,
    run_numbers,
    run_trainer,
    training_arguments,
)
from spanloop_trainer.algorithms.sequences import TrainingSequence, training_order
from spanloop_trainer.models import LoadedModel
from spanloop_trainer.settings import ResolvedSettings

Batch = dict[str, torch.Tensor]

# Columns of the dataset that the trainer reads, one row a sequence, each a list aligned with input_ids (T).
_COLUMNS = ("input_ids", "loss_mask", "logps", "advantages", "reference_logps")


def collate(rows: Sequence[dict[str, Any]], *, pad_token_id: int, denominator: float) -> Batch:
    """Rows to the batch that `GRPOTrainer._compute_loss` reads.

    What all rows have before their first sampled token is the "prompt", the rest the "completion": the loss then
    scores few prompt tokens, and nothing is padded on the left, where models with absolute positions would be wrong.

    Args:
        rows: B rows with the columns `input_ids`, `loss_mask`, `logps`, `advantages`, `reference_logps`; the last
            is empty where there is no KL penalty.
        denominator: D of this module's text.

    Returns:
        prompt_ids, prompt_mask (B, P); completion_ids, completion_mask, tool_mask, advantages, old_per_token_logps
        and, with a KL penalty, ref_per_token_logps (B, C); num_items_in_batch (). tool_mask is 1 on sampled tokens.
    """
    prompt = min(row["loss_mask"].index(1) for row in rows)
    assert prompt > 0, "a completion without any prompt token has no distribution to come from"
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(column: str, fill: float, dtype: torch.dtype) -> torch.Tensor:
        full = torch.full((len(rows), longest), fill, dtype=dtype)
        for i, row in enumerate(rows):
            full[i, : len(row[column])] = torch.tensor(row[column], dtype=dtype)
        return full

    ids = padded("input_ids", pad_token_id, torch.long)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    batch = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": mask[:, :prompt],
        "completion_ids": ids[:, prompt:],
        "completion_mask": mask[:, prompt:],
        "tool_mask": padded("loss_mask", 0, torch.long)[:, prompt:],
        "advantages": padded("advantages", 0.0, torch.float32)[:, prompt:],
        "old_per_token_logps": padded("logps", 0.0, torch.float32)[:, prompt:],
        "num_items_in_batch": torch.tensor(denominator),
    }
    if rows[0]["reference_logps"]:
        batch["ref_per_token_logps"] = padded("reference_logps", 0.0, torch.float32)[:, prompt:]
    return batch


def _rewards_are_logged(**_: Any) -> list[float | None]:
    """TRL asks for a reward function; nothing is generated here that it could judge."""
    raise AssertionError("rewards come with the dataset: TRL must never ask for one")


class LoggedPolicyTrainer(GRPOTrainer):
    """TRL's GRPOTrainer on a fixed batch order of logged sequences; the loss stays TRL's own.

    Args:
        denominator: D of this module's text, over all processes.
        kl_beta: β. The reference log-probabilities come with the rows, so no second model is kept.
    """

    # Typed as None upstream, where Trainer fills it on first use.
    _signature_columns: Any

    def __init__(self, model: Any, *, denominator: float, kl_beta: float, **kwargs: Any) -> None:
        super().__init__(model, _rewards_are_logged, **kwargs)
        self._denominator = denominator
        # Set afterwards: in the constructor it would load a reference model from the hub id in the configuration.
        self.beta = kl_beta

    def get_train_dataloader(self) -> Any:
        """The rows in order, `batch_size` a step."""
        rows: Any = self.train_dataset
        loader = DataLoader(
            rows,
            batch_size=self.args.per_device_train_batch_size,
            sampler=SequentialSampler(rows),
            collate_fn=self._collate,
        )
        return self.accelerator.prepare(loader)

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        assert self._tokenizer.pad_token_id is not None, "load() sets one"
        return collate(rows, pad_token_id=self._tokenizer.pad_token_id, denominator=self._denominator)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(_COLUMNS)

    def _prepare_inputs(self, generation_batch: Batch) -> Batch:
        # TRL would generate completions here. Trainer's own method only moves tensors to the device.
        prepared: Batch = Trainer._prepare_inputs(self, generation_batch)
        return prepared


def train_policy_gradient(
    loaded: LoadedModel,
    sequences: Sequence[TrainingSequence],
    settings: ResolvedSettings,
    run: RunContext,
    *,
    name: str,
) -> Metrics:
    """Train `loaded.model` in place towards completions with a high advantage.

    Args:
        sequences: with behaviour log-probabilities and advantages.
        name: for progress lines.

    Returns:
        `run_numbers`, and loss, kl (nats a token, to the starting model), clipped (share of tokens whose ratio was
        cut) and entropy (nats a token) as `RunLog.numbers` gives them.
    """
    order = training_order(
        [len(s.input_ids) for s in sequences],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=run.seed,
    )
    denominator = settings.batch_size * sum(sum(s.loss_mask) for s in sequences) / len(sequences)
    columns: dict[str, list[Any]] = {
        "input_ids": [s.input_ids for s in sequences],
        "loss_mask": [s.loss_mask for s in sequences],
        "logps": [s.logps for s in sequences],
        "advantages": [s.advantages for s in sequences],
        "reference_logps": [[] for _ in sequences],
    }
    steps = -(-len(order) // settings.batch_size)
    log = RunLog(name, len(order), run.progress)
    if settings.kl_beta:
        run.progress(f"{name}: log-probabilities of the starting model")
        columns["reference_logps"] = reference_logps(loaded, sequences, settings.batch_size)
    trainer = LoggedPolicyTrainer(
        model=loaded.model,
        args=grpo_config(settings, run, steps=steps),
        train_dataset=Dataset.from_dict({key: [values[i] for i in order] for key, values in columns.items()}),
        processing_class=loaded.tokenizer,
        callbacks=[log],
        denominator=denominator,
        kl_beta=settings.kl_beta,
    )
    started = time.monotonic()
    run_trainer(trainer, run)
    seconds = time.monotonic() - started
    return {
        **run_numbers(trainer, sequences, order, seconds),
        **log.numbers(loss="loss", kl="kl", clipped="clip_ratio/region_mean", entropy="entropy"),
    }


def grpo_config(settings: ResolvedSettings, run: RunContext, *, steps: int) -> GRPOConfig:
    """TRL's configuration for the loss in this module's text."""
    return GRPOConfig(
        **training_arguments(settings, run, steps=steps),
        loss_type="dapo",
        epsilon=settings.clip_epsilon,
        beta=0.0,  # see LoggedPolicyTrainer
        disable_dropout=True,  # a ratio to logged probabilities must not depend on a random mask
        num_generations=settings.batch_size,  # nothing is generated; TRL only checks that it divides the batch
        lr_scheduler_type="constant",
    )


def reference_logps(
    loaded: LoadedModel, sequences: Sequence[TrainingSequence], batch_size: int
) -> list[list[float]]:
    """Log-probability of every token under the model as it is now; 0 where loss_mask is 0.

    Returns:
        One list a sequence, aligned with its input_ids.
    """
    model = loaded.model
    device = next(model.parameters()).device
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i].input_ids))
    result: list[list[float]] = [[] for _ in sequences]
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            chunk = by_length[start : start + batch_size]
            longest = len(sequences[chunk[-1]].input_ids)
            ids = torch.zeros((len(chunk), longest), dtype=torch.long, device=device)  # (B, T)
            mask = torch.zeros_like(ids)
            wanted = torch.zeros_like(ids)
            for row, i in enumerate(chunk):
                size = len(sequences[i].input_ids)
                ids[row, :size] = torch.tensor(sequences[i].input_ids)
                mask[row, :size] = 1
                wanted[row, :size] = torch.tensor(sequences[i].loss_mask)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            picked = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)  # (B, T - 1)
            logps = torch.nn.functional.pad(picked * wanted[:, 1:], (1, 0)).cpu()
            for row, i in enumerate(chunk):
                result[i] = logps[row, : len(sequences[i].input_ids)].tolist()
    model.train(was_training)
    return result
