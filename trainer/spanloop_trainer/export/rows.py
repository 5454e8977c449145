"""The rows of a dataset that an export takes, read a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.transform.datasets.dataset import open_dataset

# Keys that OpenAI's protocol and chat templates know; others differ between SDKs.
_KEYS = ("role", "content", "refusal", "tool_calls", "tool_call_id", "name")
_BATCH = 2000

Message = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """Which rows of a dataset.

    Attributes:
        folder: of the dataset.
        split: `train`, `test`; None: all.
        min_reward: at least this reward, so that unscored rows are left out; None: all.
    """

    folder: Path
    split: str | None = None
    min_reward: float | None = None

    def scan(self) -> pl.LazyFrame:
        """Usable rows: status `ok`, in the order of the dataset.

        Raises:
            DatasetError: the folder is no finished dataset, or its rows are not those of its manifest.
        """
        rows = self._dataset.filter((pl.col("status") == "ok") & pl.col("action").is_not_null())
        if self.split is not None:
            rows = rows.filter(pl.col("split") == self.split)
        if self.min_reward is not None:
            rows = rows.filter(pl.col("reward") >= self.min_reward)
        return rows

    @cached_property
    def _dataset(self) -> pl.LazyFrame:
        # Its bytes are compared with the manifest once an export, however often it is read.
        return open_dataset(self.folder)[1]

    def rows(self, *columns: str, only: pl.DataFrame | None = None) -> Iterator[dict[str, Any]]:
        """Their columns.

        Args:
            only: `trace_id`, `span_id`, `choice` of those wanted; None: all.
        """
        scan = self.scan()
        if only is not None:
            scan = scan.join(
                only.lazy(), on=["trace_id", "span_id", "choice"], how="semi", maintain_order="left"
            )
        for batch in scan.select(columns).collect_batches(chunk_size=_BATCH, maintain_order=True):
            yield from batch.iter_rows(named=True)


def messages(text: str) -> list[Message]:
    """Those of a column `state`, with the keys that everybody knows."""
    return [bare(message) for message in json.loads(text)]


def bare(message: Message) -> Message:
    """A message with the keys that everybody knows; `content` is always there, and text where it is nothing else."""
    known = {
        "role": "",
        "content": None,
        **{key: message[key] for key in _KEYS if message.get(key) is not None},
    }
    parts = known["content"]
    if isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        known["content"] = text_of(known)
    return known


def tools(text: str | None) -> list[Any]:
    """Those of a column `tools`; none offered: empty."""
    return json.loads(text) if text else []


def text_of(message: Message) -> str:
    """Its plain text, else that of its refusal; parts that are no text are left out."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or message.get("refusal") or ""
