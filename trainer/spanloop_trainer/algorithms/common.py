"""What every algorithm shares: trainer arguments, progress, and the numbers that a run reports."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before TRL is imported: its trainers otherwise report every run to a server on the internet.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from transformers import TrainerCallback

from spanloop_trainer.algorithms.sequences import TrainingSequence
from spanloop_trainer.errors import TrainError
from spanloop_trainer.settings import ResolvedSettings

Progress = Callable[[str], None]
Metrics = dict[str, float]

_PROGRESS_EVERY_S = 5.0


def silent(_line: str) -> None:
    """The progress callback of those who want none."""


@dataclass(frozen=True)
class RunContext:
    """Where and how a run goes: output folder, seed, progress lines."""

    out: Path
    seed: int
    progress: Progress

    @property
    def checkpoints(self) -> Path:
        """Checkpoints live beside the model's files and are removed once the model is complete."""
        return self.out / "checkpoints"


def training_arguments(settings: ResolvedSettings, run: RunContext, *, steps: int) -> dict[str, Any]:
    """Arguments for any TRL configuration: one process reads rows in order, logs rarely, reports to nobody.

    Args:
        steps: optimizer steps of the whole run, which set how often it logs.

    Raises:
        TrainError: the batch does not divide over the processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % world:
        raise TrainError(
            f"batch_size {settings.batch_size} does not divide over {world} processes.",
            f"give --batch-size a multiple of {world}",
        )
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": settings.batch_size // world,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": 1,  # the rows of all epochs are laid out beforehand
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "seed": run.seed,
        "data_seed": run.seed,
        "use_cpu": not cuda,
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": cuda,
        "gradient_checkpointing": None,  # the old name, which TRL turns on
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "steps",
        "logging_steps": max(1, min(50, steps // 10)),
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
    }


class RunLog(TrainerCallback):
    """Keeps what the trainer logs, and turns it into a progress line every few seconds."""

    def __init__(self, name: str, rows: int, progress: Progress) -> None:
        self.entries: list[dict[str, float]] = []
        self._name = name
        self._rows = rows
        self._progress = progress
        self._started = time.monotonic()
        self._shown = self._started

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002  # names fixed by Trainer
        """Keep one entry; the run's own summary (`train_runtime`) is no entry."""
        if not logs or "loss" not in logs:
            return
        self.entries.append({key: value for key, value in logs.items() if isinstance(value, int | float)})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002  # as above
        """Show where the run is, at most every few seconds."""
        now = time.monotonic()
        if now - self._shown < _PROGRESS_EVERY_S:
            return
        self._shown = now
        done = state.global_step / max(1, state.max_steps)
        rate = done * self._rows / (now - self._started)
        loss = f"  loss {self.entries[-1]['loss']:.4f}" if self.entries else ""
        self._progress(
            f"{self._name}: step {state.global_step} of {state.max_steps}{loss}  {rate:.0f} sequences/s"
        )

    def numbers(self, **wanted: str) -> Metrics:
        """Logged numbers: NAME, its mean over the run, and NAME_last; absent where it was never logged.

        Args:
            wanted: our name = the trainer's name.
        """
        result: Metrics = {}
        for name, key in wanted.items():
            values = [entry[key] for entry in self.entries if key in entry]
            if values:
                result[name] = sum(values) / len(values)
                result[f"{name}_last"] = values[-1]
        return result


def run_numbers(
    trainer: Any, sequences: Sequence[TrainingSequence], order: Sequence[int], seconds: float
) -> Metrics:
    """How much was computed: optimizer steps, and transitions and tokens a second."""
    return {
        "steps": float(trainer.state.global_step),
        "transitions_per_second": sum(sequences[i].calls for i in order) / seconds,
        "tokens_per_second": sum(len(sequences[i].input_ids) for i in order) / seconds,
    }


@contextmanager
def one_thread_on_cpu() -> Iterator[None]:
    """One torch thread unless OMP_NUM_THREADS says otherwise or a GPU does the work; restored afterwards.

    Small matrices on busy cores run many times slower on two threads than on one.
    """
    if torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_trainer(trainer: Any, run: RunContext) -> None:
    """Train, from the last checkpoint where one is left from a run that was interrupted."""
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    trainer.remove_callback(PrinterCallback)  # prints to standard output, which belongs to --json
    last = get_last_checkpoint(str(run.checkpoints)) if run.checkpoints.is_dir() else None
    if last is not None:
        run.progress(f"resuming from {Path(last).name}")
    trainer.train(resume_from_checkpoint=last)
