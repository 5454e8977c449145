"""Episodes that say the same, and episodes that say nearly the same.

Near copies: MinHash of word n-grams by one permutation (Li, Owen, Zhang, "One Permutation Hashing", NIPS 2012) with optimal
densification (Shrivastava, arXiv 1703.04664), candidates by bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section
3.4). It costs one pass over the words, where a hash function for each place of the signature costs as many passes as there are places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from spanloop_trainer.transform.selection.words import Messages, grams, mix

# Places of a signature: the estimated similarity s has a standard deviation of sqrt(s (1 - s) / 128), 0.035 at 0.8.
PLACES = 128
WORDS = 5
# Chance that two episodes exactly as similar as the threshold meet in a band.
_RECALL = 0.99
# Episodes that stay and fall into one band with many that are not quite as similar: each is compared with all of them, and
# after so many rounds the rest stay.
_ROUNDS = 200
SIGNATURE = pl.Array(pl.UInt32, PLACES)

Signatures = npt.NDArray[np.uint32]


def contents(bucket: pl.DataFrame, messages: Messages) -> pl.DataFrame:
    """`episode_id` and `content` (u64): equal where all prompts, tools and answers are, but for the ids of tool calls.

    Args:
        bucket: of stage D.
    """
    text = messages.distinct.select("message", pl.struct("role", "text").hash().alias("code"))
    of_calls = (
        messages.uses.join(text, on="message", how="left")
        .group_by("episode_id", "step")
        # A sum, since it does not depend on the order of the rows; the place is in each term.
        .agg(pl.struct("place", "code").hash().sum().alias("said"))
    )
    return (
        bucket.select("episode_id", "step", "agent", "status", "tools_json")
        .join(of_calls, on=["episode_id", "step"], how="left")
        .group_by("episode_id")
        .agg(pl.struct("step", "agent", "status", "tools_json", "said").hash().sum().alias("content"))
    )


def signatures(messages: Messages) -> pl.DataFrame:
    """`episode_id` and `signature`: of the n-grams of all that was said in an episode, but for the system's messages.

    An episode without a word has none.
    """
    spoken = messages.distinct.filter(~pl.col("role").is_in(["system", "developer"]))
    found = grams(spoken["text"], WORDS)
    # 2^57 hashes fall to each place; of the rest of the hash 32 bits are kept.
    minima = pl.DataFrame(
        {
            "message": spoken["message"].gather(pl.Series(found.text)),
            "at": (found.code >> np.uint64(57)).astype(np.uint8),
            "value": (found.code & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        }
    )
    minima = minima.group_by("message", "at").agg(pl.col("value").min())
    of_episodes = (
        messages.uses.select("episode_id", "message")
        .unique()
        .join(minima, on="message", how="inner")
        .group_by("episode_id", "at")
        .agg(pl.col("value").min())
    )
    ids = of_episodes["episode_id"].unique().sort().alias("episode_id")
    row = of_episodes.join(ids.to_frame().with_row_index("row"), on="episode_id", how="left")
    values = np.zeros((len(ids), PLACES), np.uint32)
    there = np.zeros((len(ids), PLACES), bool)
    at = (row["row"].to_numpy(), row["at"].to_numpy())
    values[at], there[at] = row["value"].to_numpy(), True
    return pl.DataFrame([ids, pl.Series("signature", _densified(values, there), dtype=SIGNATURE)])


def _densified(values: Signatures, there: npt.NDArray[np.bool_]) -> Signatures:
    """Fill the places that no n-gram fell to: each borrows from the first place of an order of its own that has a value."""
    numbers = np.arange(PLACES * PLACES, dtype=np.uint64).reshape(PLACES, PLACES)
    orders = np.argsort(mix(numbers + np.uint64(1)), axis=1)  # (place, attempt)
    filled = values.copy()
    some = there.any(axis=1, keepdims=True)
    rows, empty = np.nonzero(~there & some)
    for attempt in range(PLACES):
        if not len(rows):
            break
        source = orders[empty, attempt]
        found = there[rows, source]
        filled[rows[found], empty[found]] = values[rows[found], source[found]]
        rows, empty = rows[~found], empty[~found]
    return filled


def near_copies(of_episodes: Signatures, threshold: float) -> pl.DataFrame:
    """Which episodes to drop, so that no two that stay are similar (as far as bands tell).

    Args:
        of_episodes: (episodes, PLACES), in the order in which they are preferred.
        threshold: Jaccard similarity of their n-grams, from which on an episode is a copy of an earlier one that stays.

    Returns:
        `episode`, `stays` (both places in `of_episodes`), `similarity`; ordered by `episode`.
    """
    waiting = _bands(of_episodes, threshold)
    dropped = [pl.DataFrame(schema={"episode": pl.UInt32, "stays": pl.UInt32, "similarity": pl.Float64})]
    for _ in range(_ROUNDS):
        # One alone in its band meets nobody there.
        waiting = waiting.filter(pl.len().over("band") > 1)
        if waiting.is_empty():
            break
        waiting = waiting.with_columns(pl.col("episode").min().over("band").alias("first"))
        stays = waiting.group_by("episode").agg((pl.col("first") == pl.col("episode")).all().alias("stays"))
        stays = stays.filter("stays").select("episode")
        pairs = (
            waiting.filter(pl.col("first") != pl.col("episode"))
            .select("episode", pl.col("first").alias("stays"))
            .unique()
            .join(stays, left_on="stays", right_on="episode", how="semi")
            .sort("episode", "stays")
        )
        alike = (of_episodes[pairs["episode"].to_numpy()] == of_episodes[pairs["stays"].to_numpy()]).mean(1)
        copies = (
            pairs.with_columns(pl.Series("similarity", alike, dtype=pl.Float64))
            .filter(pl.col("similarity") >= threshold)
            .unique("episode", keep="first", maintain_order=True)
        )
        dropped.append(copies)
        decided = pl.concat([stays, copies.select("episode")])
        waiting = waiting.join(decided, on="episode", how="anti")
    return pl.concat(dropped).sort("episode")


def _bands(of_episodes: Signatures, threshold: float) -> pl.DataFrame:
    """`episode` and `band`: two episodes with one value of `band` are candidates."""
    rows = max(size for size in range(1, PLACES + 1) if _meet(threshold, size) >= _RECALL or size == 1)
    frames = []
    for number in range(PLACES // rows):
        code = np.full(len(of_episodes), number, np.uint64)
        for place in range(number * rows, (number + 1) * rows):
            code = mix(code * np.uint64(31) + of_episodes[:, place].astype(np.uint64))
        frames.append(pl.DataFrame({"episode": np.arange(len(code), dtype=np.uint32), "band": code}))
    return pl.concat(frames)


def _meet(similarity: float, rows: int) -> float:
    """Chance that two episodes agree in at least one band of `rows` places."""
    return float(1 - (1 - similarity**rows) ** (PLACES // rows))
