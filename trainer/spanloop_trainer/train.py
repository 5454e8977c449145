"""Trains one model on one dataset: selects rows, runs an algorithm, writes the model folder and its record."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from spanloop_trainer.algorithms.common import Metrics, Progress, RunContext, one_thread_on_cpu, silent
from spanloop_trainer.algorithms.evidence import Evidence, choose, select_rows
from spanloop_trainer.algorithms.sequences import Call, TrainingSequence, build_sequences
from spanloop_trainer.errors import TrainError
from spanloop_trainer.models import ModelSource, find_model, load, read_training_record, save
from spanloop_trainer.rendering import ChatTemplate, RenderedText, render_transition, transition_ids
from spanloop_trainer.settings import ALGORITHMS, POLICY_GRADIENT, ResolvedSettings, Settings
from spanloop_trainer.tokenizer import fingerprint
from spanloop_trainer.transform.datasets.dataset import load_dataset

_RECORD = "training.json"


@dataclass(frozen=True)
class TrainingResult:
    """What a run made; training.json holds the same.

    Attributes:
        id: hash over everything that decides the weights (dataset, base, algorithm, settings, seed).
        algorithm: the one that ran; `auto` is resolved.
        reason: why this algorithm, one sentence.
        dataset_id: of the dataset's manifest.
        base: NAME@VERSION, folder or hub id that training started from.
        out: the model folder.
        rows: transitions trained on.
        sequences: what they became after turns were joined.
        retokenized: transitions whose ids were rendered here, since none were captured.
        too_long: transitions in sequences above max_length, which were left out.
        tokenizer: fingerprint, to compare with the server's.
        metrics: numbers of the run (loss, rows_per_second, …).
        seconds: wall time.
        resumed: True where the finished result was already there.
        version: NAME@VERSION where it was registered, else empty.
    """

    id: str
    algorithm: str
    reason: str
    dataset_id: str
    base: str
    out: Path
    seed: int
    settings: Mapping[str, float | int | bool | None]
    rows: int
    sequences: int
    retokenized: int
    too_long: int
    tokenizer: str
    metrics: Metrics
    seconds: float
    resumed: bool = False
    version: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For training.json and --json."""
        return {**asdict(self), "out": str(self.out)}


def train(
    dataset: Path,
    model: str,
    out: Path,
    *,
    algorithm: str = "auto",
    seed: int = 0,
    settings: Settings | None = None,
    client: Any = None,
    register: str | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Train `model` on `dataset` and write a Hugging Face model folder with training.json, which comes last.

    The same inputs give the same weights, and a result that is already complete is returned at once.

    Args:
        dataset: a folder that `build` wrote.
        model: a model folder, a hub id, or NAME@VERSION of the registry.
        out: the folder to write; it may hold an interrupted run of the same inputs.
        algorithm: sft, reinforce, rloo, grpo, or auto (the strongest that the data carries).
        seed: of fresh weights and of the order of rows.
        settings: None takes every default.
        client: a store connection: resolves NAME@VERSION, records the run.
        register: registers the result as the next version of this name; needs `client`.
        progress: receives one line of text now and then.

    Raises:
        TrainError: nothing can be learnt from this dataset, or `out` holds something else.
        ModelError: `model` cannot be loaded.
        DatasetError: `dataset` is no finished dataset.
    """
    if algorithm not in ALGORITHMS:
        raise TrainError(f"there is no algorithm {algorithm!r}.", "use one of: " + ", ".join(ALGORITHMS))
    if register and client is None:
        raise TrainError(f"cannot register {register!r} without a store.", "add --store")
    started, clock = datetime.now(UTC), time.monotonic()
    asked = settings or Settings()
    dataset_id, frame = _load(dataset)
    source = find_model(model, client)
    evidence = Evidence.of(frame, dataset)
    chosen, reason, min_reward = choose(algorithm, evidence, asked.min_reward)
    if min_reward is not None:
        asked = replace(asked, min_reward=min_reward)
    resolved = asked.resolved(chosen, fresh_weights=source.fresh_weights)
    progress(f"{chosen}: {reason}")
    run_id = _run_id(dataset_id, source, chosen, resolved, seed)
    done = _finished(out, run_id)
    if done is None:
        rows = select_rows(frame, chosen, resolved, evidence)
        _claim(out, run_id)
        with one_thread_on_cpu():
            outcome = _run(rows, source, RunContext(out, seed, progress), chosen, resolved)
        done = TrainingResult(
            id=run_id,
            algorithm=chosen,
            reason=reason,
            dataset_id=dataset_id,
            base=source.version or source.reference,
            out=out,
            seed=seed,
            settings=resolved.as_dict(),
            rows=rows.height,
            sequences=outcome.sequences,
            retokenized=outcome.retokenized,
            too_long=outcome.too_long,
            tokenizer=outcome.tokenizer,
            metrics=outcome.metrics,
            seconds=round(time.monotonic() - clock, 3),
        )
        (out / _RECORD).write_bytes(orjson.dumps(done.as_dict(), option=orjson.OPT_INDENT_2))
        progress(f"{chosen}: wrote {out} ({rows.height} transitions, {done.seconds:.0f} s)")
    else:
        progress(f"{chosen}: {out} already holds this result")
    return done if client is None else _record(done, client, register, started)


def _load(dataset: Path) -> tuple[str, pl.DataFrame]:
    manifest, frame = load_dataset(dataset)
    return manifest.id, frame


def _run_id(
    dataset_id: str, source: ModelSource, algorithm: str, settings: ResolvedSettings, seed: int
) -> str:
    import torch
    import transformers
    import trl

    decides = {
        "dataset": dataset_id,
        "base": source.content_hash(),
        "algorithm": algorithm,
        "settings": {key: value for key, value in settings.as_dict().items() if key != "save_steps"},
        "seed": seed,
        "versions": [torch.__version__, transformers.__version__, trl.__version__],
    }
    return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _finished(out: Path, run_id: str) -> TrainingResult | None:
    """The result in `out` if it is complete and of these inputs; anything else that is not ours is refused."""
    if out.is_file():
        raise TrainError(f"{out} is a file.", "name a folder with --out")
    record = read_training_record(out)
    if record is not None:
        if record["id"] != run_id:
            raise TrainError(
                f"{out} holds another training result (run {record['id']}); it is untouched.",
                "choose another --out, or delete that folder",
            )
        record.pop("resumed")
        record.pop("version")
        return TrainingResult(**{**record, "out": out}, resumed=True)
    marker = out / "checkpoints" / "run_id"
    # A run that died before its first checkpoint left nothing worth keeping.
    if marker.is_file() and marker.read_text() != run_id and any(marker.parent.glob("checkpoint-*")):
        raise TrainError(
            f"{out} holds an interrupted run with other inputs; it is untouched.",
            "choose another --out, or delete that folder",
        )
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise TrainError(f"{out} is not empty and no training run of ours.", "choose another --out")
    return None


def _claim(out: Path, run_id: str) -> None:
    marker = out / "checkpoints" / "run_id"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(run_id)


@dataclass(frozen=True)
class _Outcome:
    sequences: int
    retokenized: int
    too_long: int
    tokenizer: str
    metrics: Metrics


def _run(
    rows: pl.DataFrame, source: ModelSource, run: RunContext, algorithm: str, settings: ResolvedSettings
) -> _Outcome:
    """Load, train, save; `rows` has the transitions' columns, with `advantage` final."""
    records = rows.select(
        "episode_id",
        "step",
        "choice",
        "state",
        "tools",
        "action",
        "prompt_ids",
        "completion_ids",
        "logprobs",
        "advantage",
    ).to_dicts()
    texts: dict[int, RenderedText] = {}

    def rendered(template: ChatTemplate) -> Iterable[str]:
        run.progress(f"training a tokenizer on {len(records)} conversations")
        for i, row in enumerate(records):
            texts[i] = render_transition(template, row["state"], row["tools"], row["action"])
            yield texts[i].prompt + texts[i].completion

    loaded = load(source, seed=run.seed, texts=rendered)
    if source.fresh_tokenizer:
        # Ids that another tokenizer made mean nothing to this one.
        for row in records:
            row["prompt_ids"] = row["completion_ids"] = None
    ids = transition_ids(loaded.tokenizer, records, texts)
    calls = [
        Call(
            episode_id=row["episode_id"],
            step=row["step"],
            choice=row["choice"],
            prompt_ids=token.prompt,
            completion_ids=token.completion,
            logps=row["logprobs"] if algorithm in POLICY_GRADIENT else [],
            advantage=row["advantage"] if algorithm in POLICY_GRADIENT else 0.0,
        )
        for row, token in zip(records, ids, strict=True)
    ]
    sequences = build_sequences(calls, merge=settings.merge_turns)
    kept, too_long = _within(sequences, settings.max_length, len(loaded.tokenizer))
    run.progress(f"{algorithm}: {len(calls)} transitions in {len(kept)} sequences")
    if algorithm == "sft":
        from spanloop_trainer.algorithms.sft import train_sft

        metrics = train_sft(loaded, kept, settings, run, fresh_weights=source.fresh_weights)
    else:
        from spanloop_trainer.algorithms.policy_gradient import train_policy_gradient

        metrics = train_policy_gradient(loaded, kept, settings, run, name=algorithm)
    save(loaded, run.out)
    shutil.rmtree(run.checkpoints)
    return _Outcome(
        sequences=len(kept),
        retokenized=sum(token.retokenized for token in ids),
        too_long=too_long,
        tokenizer=fingerprint(loaded.tokenizer),
        metrics=metrics,
    )


def _within(
    sequences: Sequence[TrainingSequence], max_length: int, vocabulary: int
) -> tuple[list[TrainingSequence], int]:
    """Sequences that fit, and how many calls were in the others.

    Raises:
        TrainError: none fits, or ids were captured from a model with another vocabulary.
    """
    kept = [s for s in sequences if len(s.input_ids) <= max_length]
    if not kept:
        shortest = min(len(s.input_ids) for s in sequences)
        raise TrainError(
            f"every sequence is longer than max_length {max_length}; the shortest has {shortest} tokens.",
            f"give --max-length at least {shortest}",
        )
    highest = max(max(s.input_ids) for s in kept)
    if highest >= vocabulary:
        raise TrainError(
            f"a captured token id is {highest}, but the model's vocabulary ends at {vocabulary - 1}.",
            "train the model that produced these traces, or one with the same tokenizer",
        )
    return kept, sum(s.calls for s in sequences) - sum(s.calls for s in kept)


def _record(result: TrainingResult, client: Any, register: str | None, started: datetime) -> TrainingResult:
    """Write the run, and the version if one is asked for, to the registry; a result found again adds neither twice."""
    from spanloop_store import registry

    uri = str(result.out.resolve())
    # Whether it is recorded is asked of the store, not told by `resumed`: a run may have died just before this line.
    run = registry.TrainingRun(
        id=result.id,
        started=started,
        finished=datetime.now(UTC),
        algorithm=result.algorithm,
        dataset_id=result.dataset_id,
        base=result.base,
        uri=uri,
        status="ok",
        metrics=dict(result.metrics),
    )
    registry.record_training_run(client, run)
    if not register:
        return result
    for known in registry.versions(client, register):
        if known.training_run_id == result.id and known.uri == uri:
            return replace(result, version=known.id)
    entry = registry.register_model(
        client,
        register,
        uri,
        parent=result.base if "@" in result.base else "",
        dataset_id=result.dataset_id,
        training_run_id=result.id,
        metadata={"algorithm": result.algorithm, "tokenizer": result.tokenizer},
    )
    return replace(result, version=entry.id)
