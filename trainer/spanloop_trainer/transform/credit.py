"""From an episode's reward to the advantage of each of its steps.

Every method works on *episodes* and hands the result to all steps of the episode alike: normalising over steps would
count an episode once a turn and reward rambling.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from spanloop_trainer.config import CreditMethod


def advantages(
    frame: pl.DataFrame, method: CreditMethod, group: Sequence[str] = ("task_id",)
) -> pl.DataFrame:
    """Replace the column `advantage` of a frame of transitions.

    Args:
        frame: columns `episode_id`, `reward` (f64; null: unscored) and those of `group`; an episode's reward is the mean over
            its scored rows, which is the reward itself wherever all steps carry the same.
        method: with r an episode's reward and r_1 … r_G the rewards of the scored episodes in its group:

            - `identical`: A = r.
            - `group_relative`: A = (r - mean(r_1 … r_G)) / std(r_1 … r_G), GRPO, arXiv 2402.03300 section 4.1.2 (outcome
              supervision); std with G - 1, as TRL computes it; zero variance gives 0.
            - `leave_one_out`: A = r - mean of the other G - 1 rewards, RLOO, arXiv 2402.14740 equation 8.

        group: columns whose equal values make a group.

    Returns:
        The frame with `advantage` (f64), in its order. Null: the row is unscored, or its group has one scored episode and
        the method needs more.
    """
    scored = frame.filter(pl.col("reward").is_not_null())
    # Sorted, so that sums of floats come out the same whatever the order of rows.
    episodes = (
        scored.group_by(*group, "episode_id")
        .agg(pl.col("reward").sort().mean().alias("r"))
        .sort(*group, "r", "episode_id")
    )
    r, keys = pl.col("r"), list(group)
    size = pl.len().over(keys)
    match method:
        case "identical":
            advantage = r
        case "group_relative":
            spread = r.std(ddof=1).over(keys)
            # Equal rewards such as 0.1 leave a rounding error as spread: compare the extremes, not the spread.
            same = r.min().over(keys) == r.max().over(keys)
            advantage = pl.when(size > 1).then(
                pl.when(same).then(0.0).otherwise((r - r.mean().over(keys)) / spread)
            )
        case "leave_one_out":
            advantage = pl.when(size > 1).then(r - (r.sum().over(keys) - r) / (size - 1))
    per_episode = episodes.select(*keys, "episode_id", advantage.alias("advantage"))
    joined = frame.drop("advantage", strict=False).join(
        per_episode, on=[*keys, "episode_id"], how="left", maintain_order="left"
    )
    # A row that is itself unscored (an answer that the episode did not take) has no part in its episode's reward.
    return joined.with_columns(pl.when(pl.col("reward").is_not_null()).then("advantage").alias("advantage"))
