"""Draws one token a row from logits and reports its log-probability under the distribution that was sampled from."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # in (0, 1]; 1: the whole distribution
    max_tokens: int = 256  # tokens at most, the end-of-turn token included
    stop: tuple[str, ...] = ()  # text at which the answer ends; it is cut off
    seed: int | None = None  # None: a fresh stream of random numbers
    index: int = field(default=0)  # which of n answers: each has a stream of its own

    def generator(self) -> random.Random:
        """The row's own stream of uniform numbers: the same seed gives the same stream in any batch.

        The logits of a row differ in the last bits between batch shapes, so a seeded answer is reproducible except
        where a draw falls within about 1e-6 of the border between two tokens.
        """
        return random.Random() if self.seed is None else random.Random(f"{self.seed}:{self.index}")  # noqa: S311  # sampling, no secrets


class Sampler:
    """The settings of the running rows as tensors; rebuilt when the batch changes, not at every token."""

    def __init__(self, rows: list[Sampling]) -> None:
        temperatures = torch.tensor([row.temperature for row in rows], dtype=torch.float32)
        self.greedy = temperatures == 0  # (B,)
        self.any_greedy = bool(self.greedy.any())
        # A greedy row reports the log-softmax at temperature 1: under its own point mass every value would be 0.
        self.temperatures = torch.where(self.greedy, torch.ones(()), temperatures)[:, None]  # (B, 1)
        self.scaled = bool((self.temperatures != 1).any())
        top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float32)
        self.top_p = torch.where(self.greedy, torch.ones(()), top_p)[:, None]  # (B, 1)
        self.nucleus = bool((self.top_p < 1).any())

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[list[int], list[float]]:
        """Sample by inverting the cumulative distribution.

        Args:
            logits: (B, V) float32.
            uniforms: (B,) float64 in [0, 1), one number a row from the row's own generator.

        Returns:
            token ids and log-probabilities, B each; NaN where a row's logits are not finite.
        """
        logprobs = torch.log_softmax(logits / self.temperatures if self.scaled else logits, dim=-1)
        if self.nucleus:
            logprobs = _nucleus(logprobs, self.top_p)
        cumulative = logprobs.exp().to(torch.float64).cumsum(-1)  # (B, V)
        targets = (uniforms * cumulative[:, -1])[:, None]
        tokens = torch.searchsorted(cumulative, targets, right=True).clamp_(max=logits.shape[-1] - 1)
        if self.any_greedy:
            tokens = torch.where(self.greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
        return tokens[:, 0].tolist(), logprobs.gather(1, tokens)[:, 0].tolist()


def _nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the fewest most likely tokens whose probability reaches top_p and renormalise (Holtzman et al. 2020).

    Args:
        logprobs: (B, V), normalised.
        top_p: (B, 1).
    """
    ordered, order = logprobs.sort(dim=-1, descending=True)
    probabilities = ordered.exp()
    before = probabilities.cumsum(-1) - probabilities  # probability of everything likelier
    # The likeliest token stays whatever top_p says; rows with top_p 1 keep all in spite of rounding in the sum.
    drop = (before >= top_p) & (top_p < 1)
    drop[:, 0] = False
    kept = ordered.masked_fill(drop, float("-inf"))
    return torch.empty_like(logprobs).scatter_(1, order, torch.log_softmax(kept, dim=-1))
