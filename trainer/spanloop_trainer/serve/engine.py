"""Continuous batching over one model: rows join as others end; every row has its own settings and random stream."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache

from spanloop_trainer.errors import ServeError
from spanloop_trainer.serve.models import LoadedModel
from spanloop_trainer.serve.sampling import Sampler, Sampling
from spanloop_trainer.serve.slots import SlotCache

MAX_ROWS = 32  # rows decoded together; above this a CPU step costs as much more as it gives
PREFILL_TOKENS = 8192  # padded prompt tokens of one prefill, which bounds its memory
# A prefill costs about as much as a step, whether for one row or eight: rows wait until a quarter as many have
# gathered as are running, but never longer than these steps.
JOIN_SHARE = 4
JOIN_WAIT_STEPS = 4


@dataclass
class Row:
    """One answer under way. The worker thread writes it; the owner reads it after `finished`, or in `on_token`."""

    prompt: list[int]  # token ids
    sampling: Sampling
    done: Callable[[Row], None]  # called once in the worker thread, when finish_reason or error is set
    on_token: Callable[[Row, int, float], None] | None = None  # streaming; called in the worker thread
    tokens: list[int] = field(default_factory=list)  # sampled ids, the end-of-turn token included
    logprobs: list[float] = field(default_factory=list)  # aligned with tokens
    text: str = ""  # the answer without end-of-turn token and stop string; set at the end
    finish_reason: str = ""  # stop or length
    error: str = ""
    cancelled: bool = False  # set by the owner when nobody waits any more
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = self.sampling.generator()


class Engine:
    """Runs the rows of one model version. Not thread-safe: everything but `waiting.append` is the worker's."""

    def __init__(self, model: LoadedModel, max_rows: int = MAX_ROWS) -> None:
        self.model = model
        self.max_rows = max_rows
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []  # row i of the batch is slot i
        self._slots = SlotCache(max_rows)
        self._sampler: Sampler | None = None
        self._waited = 0  # steps since a row could have joined

    @property
    def busy(self) -> bool:
        """Whether any row runs or waits."""
        return bool(self.waiting or self.running)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit waiting rows if it is time, then give every running row one token."""
        if self._should_join():
            self._prefill()
        if self.running:
            self._decode()

    def fail(self, message: str) -> None:
        """End every row with an error: the batch they were in cannot be continued."""
        rows = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self._slots.clear()
        for row in rows:
            row.error = message
            row.done(row)

    def _should_join(self) -> bool:
        free = self.max_rows - len(self.running)
        if not self.waiting or not free:
            return False
        enough = min(len(self.waiting), free) * JOIN_SHARE >= len(self.running)
        if enough or self._waited >= JOIN_WAIT_STEPS:
            self._waited = 0
            return True
        self._waited += 1
        return False

    def _prefill(self) -> None:
        """Compute the prompts of the rows that join, equal prompts once, and draw their first tokens."""
        joining: list[Row] = []
        prompts: dict[tuple[int, ...], int] = {}  # prompt → its row in the prefill
        longest = 0
        while self.waiting and len(self.running) + len(joining) < self.max_rows:
            row = self.waiting[0]
            if row.cancelled:
                self.waiting.popleft()
                row.done(row)
                continue
            longest = max(longest, len(row.prompt))
            key = tuple(row.prompt)
            if joining and longest * (len(prompts) + (key not in prompts)) > PREFILL_TOKENS:
                break
            prompts.setdefault(key, len(prompts))
            joining.append(self.waiting.popleft())
        if not joining:
            return
        width = max(len(prompt) for prompt in prompts)
        # Padding is on the right, where causal attention never looks: no mask is needed, its content does not matter.
        ids = torch.tensor(
            [[*prompt, *([prompt[-1]] * (width - len(prompt)))] for prompt in prompts]
        )  # (N, width)
        lasts = sorted({len(prompt) - 1 for prompt in prompts})
        cache = DynamicCache()
        logits = self.model.forward(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=torch.tensor(lasts)
        ).logits  # (N, len(lasts), V): only the positions that are the last of some prompt
        sources = [prompts[tuple(row.prompt)] for row in joining]
        columns = [lasts.index(len(row.prompt) - 1) for row in joining]
        first = logits[torch.tensor(sources), torch.tensor(columns)].float()  # (J, V)
        self._slots.admit(cache, sources, [len(row.prompt) for row in joining])
        offset = len(self.running)
        self.running += joining
        self._emit(joining, offset, Sampler([row.sampling for row in joining]), first)

    def _decode(self) -> None:
        """One token for every running row."""
        positions, mask = self._slots.begin_step()
        last = torch.tensor([[row.tokens[-1]] for row in self.running])  # (B, 1)
        logits = self.model.forward(
            input_ids=last,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._slots.end_step()
        if self._sampler is None:
            self._sampler = Sampler([row.sampling for row in self.running])
        self._emit(self.running, 0, self._sampler, logits.float())

    def _emit(self, rows: list[Row], offset: int, sampler: Sampler, logits: torch.Tensor) -> None:
        """Draw, append, and end the rows that are finished. `rows` are `running[offset:]`."""
        uniforms = torch.tensor([row.random.random() for row in rows], dtype=torch.float64)
        tokens, logprobs = sampler.draw(logits, uniforms)
        ended: list[int] = []
        for number, (row, token, logprob) in enumerate(
            zip(rows, tokens, logprobs, strict=True), start=offset
        ):
            if math.isnan(logprob):
                row.error = (
                    f"{self.model.version} produced logits that are not finite: the model has diverged"
                )
            else:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                if row.on_token is not None:
                    row.on_token(row, token, logprob)
                self._finish(row)
            if row.finish_reason or row.error or row.cancelled:
                ended.append(number)
        if offset or ended:
            self._sampler = None
        # From the end, since release moves the last row into the gap.
        for number in reversed(ended):
            row = self.running[number]
            self._slots.release(number)
            self.running[number] = self.running[-1]
            self.running.pop()
            row.done(row)

    def _finish(self, row: Row) -> None:
        ended = row.tokens[-1] in self.model.stop_ids
        visible = row.tokens[:-1] if ended else row.tokens
        if row.sampling.stop:
            text = self.model.decode(visible)
            cuts = [at for stop in row.sampling.stop if (at := text.find(stop)) >= 0]
            if cuts:
                row.text, row.finish_reason = text[: min(cuts)], "stop"
                return
        if ended or len(row.tokens) >= row.sampling.max_tokens:
            row.text = self.model.decode(visible)
            row.finish_reason = "stop" if ended else "length"


def check_prompt(model: LoadedModel, prompt: list[int]) -> None:
    """Raise ServeError when a prompt leaves no room for an answer in the model's context."""
    if len(prompt) >= model.context:
        raise ServeError(
            f"the prompt has {len(prompt)} tokens and the context of {model.version} is {model.context}",
            "shorten the messages, or serve a model with a longer context",
        )
