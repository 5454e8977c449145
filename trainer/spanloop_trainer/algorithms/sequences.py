"""Transitions to training sequences: joins the calls of an episode whose tokens continue each other, and orders them.

Joining is exact: call 2 is appended to call 1 only where its prompt ids begin with the prompt and completion ids of
call 1. A causal model then computes the same logits for every completion token as it would for the calls one by
one, so a loss that is summed over tokens has the same gradient; each token is computed once instead of once a later
call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

# Batches that are sorted by length together: enough that padding is rare, few enough that order stays random.
_POOL_BATCHES = 32
# How many unfinished sequences of an episode a call is compared with: parallel sub-agents interleave their calls.
_OPEN_CHAINS = 8


@dataclass
class TrainingSequence:
    """One row of a training batch; every list is aligned with `input_ids` (length T)."""

    input_ids: list[int]
    # 1 where the token was sampled by the policy: only these carry loss
    loss_mask: list[int]
    # behaviour log-probability where loss_mask is 1, else 0
    logps: list[float]
    # advantage of the call that the token belongs to, else 0
    advantages: list[float]
    calls: int = 1
    # positions in the list of calls that this was made of
    members: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """One transition, ready to become part of a sequence."""

    episode_id: str
    step: int
    choice: int
    prompt_ids: list[int]
    completion_ids: list[int]
    # log-probabilities of completion_ids under the policy that sampled them; empty: not captured
    logps: list[float]
    advantage: float


def build_sequences(calls: Sequence[Call], *, merge: bool) -> list[TrainingSequence]:
    """One sequence a call, or fewer where calls of one episode continue each other exactly.

    Args:
        calls: in any order; the result is in order of (episode_id, step, choice).
        merge: False keeps every call a sequence of its own.
    """
    order = sorted(range(len(calls)), key=lambda i: (calls[i].episode_id, calls[i].step, calls[i].choice))
    result: list[TrainingSequence] = []
    open_chains: list[TrainingSequence] = []
    episode: str | None = None
    for index in order:
        call = calls[index]
        if call.episode_id != episode:
            episode, open_chains = call.episode_id, []
        base = _continued(open_chains, call) if merge else None
        if base is None:
            base = TrainingSequence([], [], [], [], calls=0)
            result.append(base)
            open_chains = [*open_chains[-(_OPEN_CHAINS - 1) :], base]
        _append(base, call, index)
    return result


def _continued(open_chains: list[TrainingSequence], call: Call) -> TrainingSequence | None:
    for chain in reversed(open_chains):
        size = len(chain.input_ids)
        if size <= len(call.prompt_ids) and call.prompt_ids[:size] == chain.input_ids:
            return chain
    return None


def _append(base: TrainingSequence, call: Call, index: int) -> None:
    new = call.prompt_ids[len(base.input_ids) :]
    size = len(call.completion_ids)
    base.input_ids += new + call.completion_ids
    base.loss_mask += [0] * len(new) + [1] * size
    base.logps += [0.0] * len(new) + (call.logps or [0.0] * size)
    base.advantages += [0.0] * len(new) + [call.advantage] * size
    base.calls += 1
    base.members.append(index)


def training_order(lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int) -> list[int]:
    """The rows of all epochs in the order in which they are read: shuffled, with similar lengths in one batch.

    Fixed beforehand and read in sequence, it gives the same batches at any number of processes and after a resume.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch over all processes; only the very last batch may be smaller.
        epochs: passes over the rows; a fraction takes a random part of the last pass.
    """
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    whole, part = divmod(epochs, 1)
    passes = [rng.permutation(rows) for _ in range(int(whole))]
    if part:
        passes.append(rng.permutation(rows)[: max(1, round(part * rows))])
    stream = np.concatenate(passes)
    size = np.asarray(lengths)
    ordered: list[int] = []
    pool = batch_size * _POOL_BATCHES
    for start in range(0, len(stream), pool):
        chunk = stream[start : start + pool]
        chunk = chunk[np.argsort(size[chunk], kind="stable")]
        batches = [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
        # A short batch must stay last, or every batch after it would be cut across two lengths.
        full = [batch for batch in batches if len(batch) == batch_size]
        rest = [batch for batch in batches if len(batch) < batch_size]
        shuffled: Iterable[np.ndarray] = [full[i] for i in rng.permutation(len(full))]
        for batch in [*shuffled, *rest]:
            ordered.extend(int(row) for row in batch)
    return ordered
