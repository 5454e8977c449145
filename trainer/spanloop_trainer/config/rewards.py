"""`[[rewards]]`, `[judge]` and `[watermark]` of `spanloop.toml`: what is rewarded, by whom, and when."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    # TOML has `inf` and `nan`: no weight, price or time is one.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RewardRule(_Strict):
    """One name of reward: computed by an expression, a verifier or a judge; with none of them, only weighed."""

    name: str
    expression: str = ""
    """Polars SQL over the columns of `level`; null means unscored. Empty: only rows of table `rewards` with this name."""
    level: Literal["episode", "call"] = "episode"
    """What the expression looks at, and what its value rewards."""
    verifier: str = ""
    """A verifier that ships, an entry point, or `FILE.py:FUNCTION` relative to the folder of `spanloop.toml`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the verifier."""
    rubric: str = ""
    """What the model of `[judge]` looks for."""
    rank: bool = False
    """The judge puts the episodes of one task in order instead of scoring each."""
    weight: float = 1.0
    """Factor in the sum that makes the reward."""
    version: str = "1"
    """Recorded with every value; raise it when the meaning of the rule changes."""

    @model_validator(mode="after")
    def _one_way(self) -> RewardRule:
        ways = [way for way in ("expression", "verifier", "rubric") if getattr(self, way)]
        if len(ways) > 1:
            raise ValueError(f"{self.name!r} has {' and '.join(ways)}; one of them computes a reward")
        for setting, way in (("level", "expression"), ("options", "verifier"), ("rank", "rubric")):
            if setting in self.model_fields_set and way not in ways:
                raise ValueError(f"{self.name!r} has {setting}, which is of use with {way} alone")
        return self


class Judge(_Strict):
    """The model that judges by the rubrics of `[[rewards]]`. What does not change its verdicts is no part of a dataset's id."""

    model: str
    """As the server names it."""
    base_url: str = Field(default="https://api.openai.com/v1", exclude=True)
    """Anything that speaks the OpenAI protocol."""
    api_key_env: str = Field(default="OPENAI_API_KEY", exclude=True)
    """Environment variable that holds the key."""
    scale: int = Field(default=10, ge=1)
    """Scores are whole numbers from 0 to this; the reward is score / scale."""
    max_chars: int = Field(default=24_000, ge=1_000)
    """Of a conversation shown to the judge; the middle of a longer one is left out. A ranking shares it."""
    request: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, as `temperature`."""
    concurrency: int = Field(default=8, ge=1, exclude=True)
    """Requests at a time."""
    timeout_s: float = Field(default=60.0, gt=0, exclude=True)
    """Of one request."""
    price_input: float = Field(default=0.0, ge=0, exclude=True)
    """Of a million tokens of prompt, in your currency."""
    price_output: float = Field(default=0.0, ge=0, exclude=True)
    """Of a million tokens of answer."""
    max_cost: float | None = Field(default=None, gt=0, exclude=True)
    """What one build may spend, in the same currency; null: no limit."""

    @model_validator(mode="after")
    def _priced(self) -> Judge:
        if self.max_cost is not None and not (self.price_input or self.price_output):
            raise ValueError(
                "max_cost needs price_input and price_output: without them nothing costs anything"
            )
        return self


class Watermark(_Strict):
    """How long judgements of an episode are waited for."""

    wait_h: float = Field(default=0.0, ge=0, le=1e6)
    """Hours: an episode that ended later than this before the build stays out of it."""
