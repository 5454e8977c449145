"""Names for texts: what was asked, and which prompt."""

from __future__ import annotations

import hashlib

import polars as pl


def prompt_hash(prompts: pl.Series) -> pl.Series:
    """`prompt-` and 64 bits of SHA-256 of every prompt without the space around it: the same on every machine."""
    distinct = prompts.drop_nulls().unique().alias("prompt")
    hashes = [hash_of(prompt.strip()) for prompt in distinct.to_list()]
    table = pl.DataFrame([distinct, pl.Series("hash", hashes, dtype=pl.String)])
    return (
        prompts.alias("prompt").to_frame().join(table, on="prompt", how="left", maintain_order="left")["hash"]
    )


def hash_of(text: str) -> str:
    """One of them."""
    return f"prompt-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
