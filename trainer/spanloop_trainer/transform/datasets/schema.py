"""The columns of `transitions.parquet`: the contract between `build` and everything that reads a dataset."""

from __future__ import annotations

import polars as pl

STATUSES = ("ok", "error", "truncated", "invalid")

REWARD_PART = pl.Struct(
    {
        "name": pl.String,
        "value": pl.Float64,
        "source": pl.String,
        "evaluator": pl.String,
        "version": pl.String,
    }
)
SAMPLING = pl.Struct(
    {"temperature": pl.Float64, "top_p": pl.Float64, "max_tokens": pl.Int64, "seed": pl.Int64, "n": pl.Int32}
)

_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "episode_id": pl.String,  # the run it belongs to
    "step": pl.Int32,  # 0, 1, … in the order of start
    "choice": pl.Int32,  # which of n answers, from 0
    "parent_episode_id": pl.String,  # the episode that called this one as a step; null: none
    "task_id": pl.String,  # the rollouts of one task form a group
    "agent": pl.String,
    "trace_id": pl.String,
    "span_id": pl.String,
    "response_id": pl.String,  # null: the call had no answer
    "start": pl.Datetime("ns"),  # UTC
    "state": pl.String,  # JSON: messages in OpenAI chat form; null: status invalid
    "tools": pl.String,  # JSON: tool schemas in OpenAI form; null: none offered
    "action": pl.String,  # JSON: the assistant message; null unless status is ok
    "observation": pl.String,  # JSON: messages added before the next call; null: none seen
    "next_span_id": pl.String,  # null: nothing follows this choice
    "done": pl.Boolean,
    "status": pl.Enum(STATUSES),
    "error_type": pl.String,
    "failure": pl.String,  # one of `failures.FAILURES` (docs/episodes.md); null: none
    "finish_reason": pl.String,  # of this choice; `length` is a whole action that hit the token limit
    "reward": pl.Float64,  # null: unscored, never 0
    "return_": pl.Float64,  # discounted sum of what was earned from this step on (docs/credit.md)
    "advantage": pl.Float64,  # null: unscored, or there is nothing to compare with
    "reward_parts": pl.List(REWARD_PART),  # every source, unweighted
    "policy": pl.String,
    "policy_version": pl.String,
    # `prompt:NAME@VERSION` that the gateway sent, and `requested:NAME@VERSION` where the agent sent another one (which is
    # what `state` shows then); without the gateway's stamp `prompt:HASH` of the system prompt
    "resources": pl.List(pl.String),
    "sampling": SAMPLING,
    "prompt_ids": pl.List(pl.Int32),  # null: not captured
    "completion_ids": pl.List(pl.Int32),
    "logprobs": pl.List(pl.Float64),  # behaviour log-probabilities, aligned with completion_ids
    "flags": pl.List(pl.String),  # what the recording does not say exactly (docs/flavours.md); empty: nothing
    "weight": pl.Float64,
    "split": pl.String,
}
TRANSITIONS = pl.Schema(_COLUMNS)
ORDER = ("episode_id", "step", "choice")
