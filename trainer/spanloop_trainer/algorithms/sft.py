"""Supervised fine-tuning on what the policy did, by TRL's SFTTrainer on token ids.

Left out: per-sample weights (SFTTrainer has none; a row of weight 0 is not selected at all), packing (on a CPU
sorted batches waste as little), evaluation during training (the gate judges, on held-out tasks).

Normaliser: each batch's loss is the sum over its completion tokens divided by their number. Joined turns therefore
change nothing but which tokens meet in one batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

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

_IGNORED = -100  # the label of a token without loss, in torch's cross entropy and in TRL

logger = logging.getLogger(__name__)


def train_sft(
    loaded: LoadedModel,
    sequences: Sequence[TrainingSequence],
    settings: ResolvedSettings,
    run: RunContext,
    *,
    fresh_weights: bool,
) -> Metrics:
    """Train `loaded.model` in place to continue each prompt as the logged policy did.

    Args:
        fresh_weights: decay the rate over the run, as training from nothing needs; else hold it after warm-up.

    Returns:
        `run_numbers`, and loss and accuracy (share of tokens that are the model's first choice) as `RunLog.numbers` gives them.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    order = training_order(
        [len(s.input_ids) for s in sequences],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=run.seed,
    )
    steps = -(-len(order) // settings.batch_size)
    labels = [
        [token if keep else _IGNORED for token, keep in zip(s.input_ids, s.loss_mask, strict=True)]
        for s in sequences
    ]
    dataset = Dataset.from_dict(
        {"input_ids": [sequences[i].input_ids for i in order], "labels": [labels[i] for i in order]}
    )
    log = RunLog("sft", len(order), run.progress)
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(
            **training_arguments(settings, run, steps=steps),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            lr_scheduler_type="cosine" if fresh_weights else "constant_with_warmup",
            warmup_steps=min(50, steps // 20),
        ),
        train_dataset=dataset,
        processing_class=loaded.tokenizer,
        callbacks=[log],
    )
    started = time.monotonic()
    run_trainer(trainer, run)
    seconds = time.monotonic() - started
    return {
        **run_numbers(trainer, sequences, order, seconds),
        **log.numbers(loss="loss", accuracy="mean_token_accuracy"),
    }
