"""Defaults of the algorithms: what None stands for, and what a user says instead."""

from __future__ import annotations

import pytest

from spanloop_trainer.errors import TrainError
from spanloop_trainer.settings import ALGORITHMS, Settings


def test_without_a_baseline_the_ratio_may_grow_further() -> None:
    found = {
        name: Settings().resolved(name, fresh_weights=False).clip_epsilon
        for name in ("reinforce", "rloo", "grpo")
    }
    assert found == {"reinforce": 0.5, "rloo": 0.2, "grpo": 0.2}


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "auto"])
def test_what_the_user_says_stands(algorithm: str) -> None:
    said = Settings(learning_rate=0.5, epochs=0.25, batch_size=3, kl_beta=0.7, clip_epsilon=0.3)
    for fresh in (False, True):
        resolved = said.resolved(algorithm, fresh_weights=fresh)
        assert {name: value for name, value in said.__dict__.items() if value is not None}.items() <= (
            resolved.as_dict().items()
        )


def test_fresh_weights_learn_faster() -> None:
    rates = [Settings().resolved("sft", fresh_weights=fresh).learning_rate for fresh in (False, True)]
    assert rates[0] < rates[1]


def test_a_value_out_of_range_names_its_option() -> None:
    with pytest.raises(TrainError) as caught:
        Settings(clip_epsilon=1.0).resolved("rloo", fresh_weights=False)
    assert "--clip-epsilon" in caught.value.hint
