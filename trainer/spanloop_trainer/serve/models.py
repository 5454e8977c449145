"""Loads Hugging Face model folders for serving, keeps the last few, and finds versions in the registry."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spanloop_trainer.errors import ServeError
from spanloop_trainer.rendering import ChatTemplate, Message, template_messages

if TYPE_CHECKING:
    from spanloop_store.registry import ModelVersion

logger = logging.getLogger(__name__)

KEEP_VERSIONS = 6  # models in memory; a night compares a handful
FULL_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(eq=False)
class LoadedModel:
    """One version, ready to sample from."""

    version: str  # NAME@VERSION, or NAME for a folder given by name
    folder: str
    tokenizer: Any
    forward: Callable[..., Any]  # the causal LM
    context: int  # positions, prompt and answer together
    stop_ids: frozenset[int]  # end-of-turn tokens
    template: ChatTemplate

    def prompt_ids(self, messages: list[Message], tools: list[Any] | None) -> list[int]:
        """Token ids that the model continues: `rendering.prompt_ids`, with the template read once.

        Raises:
            TrainError: the template fails on these messages.
        """
        text = self.template.prompt(template_messages(self.template, messages), tools)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text of token ids. Special tokens are shown: `<tool_call>` may be one, and hiding any would hide a fault."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def load(version: str, folder: str) -> LoadedModel:
    """Read a model folder (float32, CPU).

    Raises:
        ServeError: no such folder, not a causal LM with tokenizer and chat template, or one we cannot batch.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ServeError(
            f"{version}: {path} is not a model folder (it has no config.json)",
            "give NAME=DIR with a folder that `spanloop train --out DIR` or `save_pretrained` wrote",
        )
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise ServeError(
            f"{version}: {path} has no weights (*.safetensors)", "train it first: `spanloop train`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ServeError(
            f"{version}: {path} cannot be loaded as a causal language model: {error}",
            "check that the folder holds config, weights and tokenizer of one model",
        ) from error
    if tokenizer.chat_template is None:
        raise ServeError(f"{version}: {path} has no chat template", "add chat_template.jinja to the folder")
    model.train(False)
    model.requires_grad_(False)
    return LoadedModel(
        version=version,
        folder=str(path),
        tokenizer=tokenizer,
        forward=model,
        context=_context(version, model),
        stop_ids=_stop_ids(model, tokenizer),
        template=ChatTemplate.of(tokenizer),
    )


def _context(version: str, model: Any) -> int:
    """Positions that the model was made for; a sliding window bounds it, since slots keep every position."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Which keywords a model takes is decided by its class, not by a base class, so its signature is the only source.
    if "position_ids" not in signature(model.forward).parameters or not layers <= FULL_ATTENTION:
        raise ServeError(
            f"{version}: this server batches attention models with explicit positions, not {config.model_type}",
            "serve it with vLLM, which speaks the same protocol",
        )
    limit = int(getattr(config, "max_position_embeddings", None) or 1_000_000)
    window = getattr(config, "sliding_window", None)
    if window and "sliding_attention" in layers:
        limit = min(limit, int(window))
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and "chunked_attention" in layers:
        limit = min(limit, int(chunk))
    return limit


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return frozenset(token for token in ids if token is not None)


class Models:
    """Versions by name: pinned ones were named at start, others are looked up in the registry on first use."""

    def __init__(self, store: str | None = None, keep: int = KEEP_VERSIONS) -> None:
        self.store = store
        self.keep = keep
        self.pinned: dict[str, LoadedModel] = {}
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = asyncio.Lock()

    def pin(self, model: LoadedModel) -> None:
        """Keep a model for the server's life."""
        self.pinned[model.version] = model

    def names(self) -> list[str]:
        """Versions in memory."""
        return [*self.pinned, *(name for name in self._loaded if name not in self.pinned)]

    async def get(self, ref: str) -> LoadedModel | None:
        """The model for NAME, NAME@VERSION or NAME@ALIAS; None when neither we nor the registry know it.

        Raises:
            ServeError: the registry names a folder that cannot be loaded.
            SpanloopError: the store cannot be reached.
        """
        if (model := self._recall(ref)) is not None:
            return model
        if self.store is None:
            return None
        async with self._lock:
            if (model := self._recall(ref)) is not None:
                return model
            record = await asyncio.to_thread(self._lookup, ref)
            if record is None:
                return None
            if (model := self._recall(record.id)) is not None:
                return model
            logger.info("loading %s from %s", record.id, record.uri)
            model = await asyncio.to_thread(load, record.id, record.uri)
            self._loaded[record.id] = model
            while len(self._loaded) > self.keep:
                gone, _ = self._loaded.popitem(last=False)
                logger.info("unloading %s, the least recently used", gone)
            return model

    def _recall(self, ref: str) -> LoadedModel | None:
        if ref in self.pinned:
            return self.pinned[ref]
        if ref in self._loaded:
            self._loaded.move_to_end(ref)
        return self._loaded.get(ref)

    def _lookup(self, ref: str) -> ModelVersion | None:
        # Late, so that a server of plain folders needs no driver for the store.
        from spanloop_store import connect, registry
        from spanloop_store.errors import RegistryError

        # Opened for each look-up: an embedded store that nobody serves is locked only for this moment.
        with closing(connect(self.store)) as client:
            try:
                return registry.resolve(client, ref)
            except RegistryError:
                return None

    async def registered(self) -> list[str]:
        """NAME@VERSION of everything in the registry; empty without a store."""
        if self.store is None:
            return []

        def read() -> list[str]:
            from spanloop_store import connect, registry

            with closing(connect(self.store)) as client:
                return [version.id for version in registry.versions(client)]

        return await asyncio.to_thread(read)
