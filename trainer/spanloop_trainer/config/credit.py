"""`[credit]` of `spanloop.toml`: how rewards become the advantage of each step."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CreditMethod = Literal["identical", "discounted", "rewards_to_go", "grpo", "rloo", "gigpo", "gae"]

# What each method of credit may be told, and what holds if it is not.
CREDIT_OPTIONS: dict[str, dict[str, float | bool | str]] = {
    "identical": {},
    # Agents take few steps: .99 would hardly tell the first from the last.
    "discounted": {"gamma": 0.95},
    "rewards_to_go": {"gamma": 1.0},
    "grpo": {"scale_by_std": True},
    "rloo": {},
    # γ and ω as in the paper's experiments.
    "gigpo": {"gamma": 0.95, "omega": 1.0, "scale_by_std": True},
    # An episode ends by itself, so that nothing need be discounted.
    "gae": {"gamma": 1.0, "lambda": 0.95, "values": ""},
}


class Credit(BaseModel):
    """How the rewards of an episode become the advantage of its steps; docs/credit.md has the equations.

    A method knows some of the options; those that it does not know are None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    method: CreditMethod = "identical"
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Factor a step; 1 does not discount."""
    lambda_: float | None = Field(default=None, ge=0, le=1, alias="lambda")
    """0 trusts the values alone, 1 what was earned alone."""
    omega: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Factor of the advantage among equal states; 0 leaves that of the episodes."""
    scale_by_std: bool | None = None
    """Divide by the group's standard deviation; false is Dr. GRPO."""
    values: str | None = None
    """Parquet file with `trace_id`, `span_id`, `choice`, `value`; relative to the folder of `spanloop.toml`."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, given: Any) -> Any:
        """Fill in the defaults of the method, and refuse what it has no use for."""
        if not isinstance(given, dict) or given.get("method", "identical") not in CREDIT_OPTIONS:
            return given
        method = given.get("method", "identical")
        options = CREDIT_OPTIONS[method]
        asked = {"lambda" if name == "lambda_" else name: value for name, value in given.items()}
        known = {name for of_method in CREDIT_OPTIONS.values() for name in of_method}
        foreign = sorted(
            name for name, value in asked.items() if name in known - options.keys() and value is not None
        )
        if foreign:
            valid = f"only {', '.join(options)}" if options else "no options"
            raise ValueError(f"{method} has no {' and no '.join(foreign)}; it takes {valid}")
        if "values" in options and not asked.get("values"):
            raise ValueError(f"{method} needs values: a Parquet file with the value of every state")
        return {**options, **{name: value for name, value in asked.items() if value is not None}}

    def __str__(self) -> str:
        """The method with its options, as the manifest names it: `gae gamma=1 lambda=0.95 values=v.parquet`."""
        options = self.model_dump(by_alias=True, exclude={"method"}, exclude_none=True)
        shown = (
            f"{name}={str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else format(value, 'g')}"
            for name, value in options.items()
        )
        return " ".join([self.method, *shown])
