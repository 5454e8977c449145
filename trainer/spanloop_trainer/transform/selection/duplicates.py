"""Episodes that say the same, and episodes that say nearly the same.

Near copies: MinHash of word n-grams by one permutation (Li, Owen, Zhang, "One Permutation Hashing", NIPS 2012) with optimal
densification (Shrivastava, arXiv 1703.04664), candidates by bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section
3.4). It costs one pass over the words, where a hash function for each place of the signature costs as many passes as there are places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from spanloop_trainer.transform.selection.words import IDS, Messages, grams, mix

# Places of a signature: the estimated similarity s has a standard deviation of sqrt(s (1 - s) / 128), 0.035 at 0.8.
PLACES = 128
WORDS = 5
# Chance that two episodes exactly as similar as the threshold meet in a band.
_RECALL = 0.99
# In a round the first 1, 2, 4, … of a band are compared with all others of it; so many at most.
_HEADS = 64
# From so many on, a band whose first ones are no copies of each other holds words of a template.
_TELLING = 8
# What is undecided then, in bands that are neither a template's nor one family's, is compared within bands of `_HEADS` alone.
_ROUNDS = 50
# Pairs of signatures compared at a time: 128 bytes each.
_PAIRS = 1 << 18
SIGNATURE = pl.Array(pl.UInt32, PLACES)
_COPY = {"episode": pl.UInt32, "stays": pl.UInt32, "similarity": pl.Float64}

Signatures = npt.NDArray[np.uint32]


def contents(bucket: pl.DataFrame, messages: Messages) -> pl.DataFrame:
    """`episode_id` and `content` (u64): equal where all prompts, tools and answers are, but for the ids of tool calls.

    Args:
        bucket: of stage D.
    """
    whole = messages.distinct.select("message", pl.col("raw").str.replace_all(IDS, "").hash().alias("code"))
    of_calls = (
        messages.uses.join(whole, on="message", how="left")
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
    waiting, found = _bands(of_episodes, threshold), [pl.DataFrame(schema=_COPY)]
    for number in range(_ROUNDS + 1):
        if number == _ROUNDS:
            waiting = waiting.filter(pl.len().over("band") <= _HEADS)
        # One alone in its band meets nobody there.
        waiting = waiting.filter(pl.len().over("band") > 1).sort("band", "episode")
        if waiting.is_empty():
            break
        heads = min(2**number, _HEADS)
        waiting = waiting.with_columns((pl.int_range(pl.len()).over("band") < heads).alias("head"))
        edges = _edges(of_episodes, waiting, threshold)
        stays, copies = _decided(waiting, edges)
        found.append(copies)
        if heads >= _TELLING:
            waiting = waiting.join(_templates(waiting, edges), on="band", how="anti")
        decided = pl.concat([stays, copies.select("episode")])
        waiting = waiting.select("episode", "band").join(decided, on="episode", how="anti")
    return pl.concat(found).sort("episode")


def _edges(of_episodes: Signatures, waiting: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Columns `_COPY`: which episode is like which earlier head of one of its bands; ordered."""
    pairs = (
        waiting.select("band", "episode")
        .join(waiting.filter("head").select("band", pl.col("episode").alias("stays")), on="band")
        .filter(pl.col("stays") < pl.col("episode"))
        .select("episode", "stays")
        .unique()
        .sort("episode", "stays")
    )
    alike = [
        (of_episodes[part["episode"].to_numpy()] == of_episodes[part["stays"].to_numpy()]).mean(1)
        for part in pairs.iter_slices(_PAIRS)
    ]
    similarity = pl.Series("similarity", np.concatenate(alike), dtype=pl.Float64)
    return pairs.with_columns(similarity).filter(pl.col("similarity") >= threshold)


def _templates(waiting: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
    """`band`: large ones of episodes that share a template and are no copies: comparing them all would take the square of their number.

    Copies share more than the template, and so meet in other bands.
    """
    alone = ~pl.col("episode").is_in(edges["episode"].unique().implode())
    return (
        waiting.group_by("band")
        .agg(pl.len(), alone.filter("head").mean().alias("alone"))
        .filter((pl.col("len") > _HEADS) & (pl.col("alone") > 0.5))
        .select("band")
    )


def _decided(waiting: pl.DataFrame, edges: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Who stays, and who is a copy of one that stays, as far as the heads of bands tell.

    A head of all its bands has met every earlier episode: it stays if no earlier one that stays is like it. All others of
    its bands have met it, so that it need not be looked at again.
    """
    met = waiting.group_by("episode").agg(pl.col("head").all()).filter("head").select("episode")
    staying, copies = [], []
    # Down the chain of what is like what: those without an earlier one stay, those like them go, and again.
    while True:
        stays = met.join(edges, on="episode", how="anti")
        copy = edges.join(stays, left_on="stays", right_on="episode", how="semi").unique(
            "episode", keep="first", maintain_order=True
        )
        staying.append(stays)
        copies.append(copy)
        if copy.is_empty():
            return pl.concat(staying), pl.concat(copies)
        gone = copy.select("episode")
        met = met.join(pl.concat([stays, gone]), on="episode", how="anti")
        edges = edges.join(gone, on="episode", how="anti").join(
            gone, left_on="stays", right_on="episode", how="anti"
        )


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
