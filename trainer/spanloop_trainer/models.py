"""Loads a model and its tokenizer from a folder, a hub id or a registry reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from spanloop_trainer.errors import ModelError
from spanloop_trainer.rendering import ChatTemplate
from spanloop_trainer.tokenizer import train_tokenizer

# "Loading weights" and "Writing model shards", for every model however small: not among our own progress lines.
disable_progress_bar()

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
# A weight file above this is told apart by its size alone: hashing 100 GB would take minutes.
_HASH_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before anything of it is loaded.

    Attributes:
        reference: what the user asked for.
        location: a folder or a hub id that `from_pretrained` takes.
        version: NAME@VERSION when it came from the registry; empty otherwise.
    """

    reference: str
    location: str
    version: str = ""

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a hub id."""
        path = Path(self.location).expanduser()
        return path if path.is_dir() else None

    @property
    def fresh_weights(self) -> bool:
        """True where a configuration stands without weights."""
        return self.folder is not None and not _has(self.folder, _WEIGHTS)

    @property
    def fresh_tokenizer(self) -> bool:
        """True where the folder brings no tokenizer: one is trained on the data."""
        return self.folder is not None and not _has(self.folder, _TOKENIZER_FILES)

    def content_hash(self) -> str:
        """Hash over the folder's files (a hub id: over its name); equal folders give equal hashes."""
        digest = hashlib.sha256()
        if self.folder is None:
            digest.update(self.location.encode())
            return digest.hexdigest()[:16]
        for path in sorted(self.folder.iterdir()):
            # training.json holds how long the run took: two equal models may differ in it.
            if not path.is_file() or path.name == "training.json":
                continue
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            if size <= _HASH_LIMIT_BYTES:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def _has(folder: Path, patterns: Iterable[str]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def find_model(reference: str, client: Any = None) -> ModelSource:
    """Say where `reference` points, without loading it.

    Args:
        reference: a folder, a hub id, or NAME@VERSION / NAME@ALIAS of the registry.
        client: a store connection; without one, registry references cannot be resolved.

    Raises:
        ModelError: the folder is not a model, or the reference needs a store.
        RegistryError: the registry does not know the reference.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} is not a model folder: it has no config.json.",
                "name a Hugging Face model folder, a hub id such as Qwen/Qwen3-0.6B, or NAME@VERSION",
            )
        return ModelSource(reference, str(path.resolve()))
    if path.exists():
        raise ModelError(f"{path} is a file, not a model folder.", "name the folder that it lies in")
    if "@" in reference:
        if client is None:
            raise ModelError(
                f"{reference} is a registry reference, and no store was given.",
                "add --store, or name a folder",
            )
        from spanloop_store.registry import resolve

        entry = resolve(client, reference)
        source = ModelSource(reference, entry.uri, entry.id)
        if entry.uri.startswith(("/", "~", ".")) and source.folder is None:
            raise ModelError(
                f"{entry.id} is registered at {entry.uri}, which is not there any more.",
                "restore the folder, or train and register the model again",
            )
        return source
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1 or not reference:
        raise ModelError(
            f"there is no folder {reference!r}.", "check --model: a folder, a hub id, or NAME@VERSION"
        )
    return ModelSource(reference, reference)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in float32 and its tokenizer, which agree on padding and end of turn."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_template(source: ModelSource) -> ChatTemplate:
    """The chat_template.jinja of a folder that has no tokenizer yet.

    Raises:
        ModelError: there is none.
    """
    assert source.folder is not None, "only a folder can lack a tokenizer"
    path = source.folder / "chat_template.jinja"
    if not path.is_file():
        raise ModelError(
            f"{source.folder} has neither a tokenizer nor a chat_template.jinja to train one for.",
            "add chat_template.jinja, or copy the tokenizer's files into the folder",
        )
    return ChatTemplate(path.read_text(encoding="utf-8"), str(path), {})


def load(
    source: ModelSource, *, seed: int, texts: Callable[[ChatTemplate], Iterable[str]] | None = None
) -> LoadedModel:
    """Load weights and tokenizer; make those that the folder lacks.

    Weights are loaded as float32, whatever they were stored as: optimizer steps of 1e-6 vanish in bfloat16.

    Args:
        seed: for fresh weights.
        texts: renders the dataset with a template; needed where a tokenizer has to be trained.

    Raises:
        ModelError: no model can be loaded from there; the library's own message is part of ours.
    """
    try:
        config = AutoConfig.from_pretrained(source.location)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(source, error) from error
    tokenizer = _tokenizer(source, config, texts)
    try:
        if source.fresh_weights:
            torch.manual_seed(seed)
            _adopt_tokens(config, tokenizer)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _unreadable(source, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if source.fresh_weights:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {source.reference} knows {len(tokenizer)} tokens, the model's embedding only {rows}.",
            "use the tokenizer that belongs to the model, or raise vocab_size in config.json",
        )
    return LoadedModel(model, tokenizer)


def _tokenizer(
    source: ModelSource, config: Any, texts: Callable[[ChatTemplate], Iterable[str]] | None
) -> PreTrainedTokenizerBase:
    if source.fresh_tokenizer:
        if not source.fresh_weights:
            raise ModelError(
                f"{source.location} has weights but no tokenizer.",
                "copy the tokenizer's files that belong to these weights into the folder",
            )
        if texts is None:
            raise ModelError(
                f"{source.location} has no tokenizer.",
                "run spanloop train on it first: it trains one on a dataset",
            )
        if config.model_type == "qwen2":
            raise ModelError(
                f"{source.location}: a qwen2 configuration makes AutoTokenizer ignore a trained tokenizer's rules.",
                'use "model_type": "llama" or "qwen3" in config.json, or bring a tokenizer',
            )
        template = load_template(source)
        return train_tokenizer(texts(template), template, int(config.vocab_size))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.location)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(source, error) from error
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {source.reference} names no end-of-turn token.",
            "set eos_token in tokenizer_config.json",
        )
    return tokenizer


def _adopt_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = None
    config.vocab_size = max(config.vocab_size, len(tokenizer))


def _unreadable(source: ModelSource, error: Exception) -> ModelError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"no model can be loaded from {source.reference}: {first_line}",
        "name a Hugging Face model folder, a hub id that this network can reach, or NAME@VERSION",
    )


def save(loaded: LoadedModel, out: Path) -> None:
    """Write weights and tokenizer as a Hugging Face model folder that AutoModel and AutoTokenizer read back."""
    out.mkdir(parents=True, exist_ok=True)
    loaded.model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


def read_training_record(folder: Path) -> dict[str, Any] | None:
    """training.json of a finished run, None where there is none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = orjson.loads(path.read_bytes())
    return record
