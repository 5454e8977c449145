"""How large a run is and with which settings it learns: all numbers of the demo in one place, fixed before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spanloop_trainer.settings import Settings

OPENAI, LANGGRAPH = "calculator-openai", "calculator-langgraph"


@dataclass(frozen=True)
class Plan:
    """One size of the demo.

    Attributes:
        yesterday: episodes by agent under the scripted policy; every one of another task.
        nights: rounds of collecting and training.
        night: episodes by agent a round; every one of another task, none of yesterday's.
        samples: how often each task of a night is run; above 1 for algorithms that compare rollouts of one task.
        test: held-out tasks by agent; no task is given to both.
        unseen_share: share of the held-out tasks whose wording never occurs in training.
        largest: numbers in tasks are 0 … largest.
        concurrency: tasks at a time by agent.
        base: SFT of the base from fresh weights on yesterday's traces.
        algorithm: of the nights.
        night_settings: of the nights.
        successes: SFT on the successful episodes of all nights, from the base: what RL is compared with; None: left out.
    """

    yesterday: Mapping[str, int]
    nights: int
    night: Mapping[str, int]
    samples: int
    test: Mapping[str, int]
    unseen_share: float
    largest: int
    concurrency: Mapping[str, int]
    base: Settings
    algorithm: str
    night_settings: Settings
    successes: Settings | None


# An openai call costs a third of the CPU of the same call through LangGraph, so that agent does most of the work.
DEMO = Plan(
    yesterday={OPENAI: 3300, LANGGRAPH: 300},
    nights=3,
    night={OPENAI: 840, LANGGRAPH: 120},
    samples=1,
    test={OPENAI: 210, LANGGRAPH: 210},
    unseen_share=0.2,
    largest=99,
    concurrency={OPENAI: 24, LANGGRAPH: 12},
    base=Settings(learning_rate=3e-3, epochs=5, batch_size=16),
    algorithm="reinforce",
    # A ratio clipped at 1.2 lets the right tool, taken in a third of the cases, grow by a fifth a night and no more.
    night_settings=Settings(learning_rate=2e-4, epochs=2, kl_beta=0.1, clip_epsilon=0.5, batch_size=64),
    # The best of four settings that were tried: a comparison with a weak opponent would say nothing.
    successes=Settings(learning_rate=1e-3, epochs=4, batch_size=64, min_reward=1.0),
)

# Every part of the path with as little of it as still has something to learn from: for the end-to-end test.
SMALL = Plan(
    yesterday={OPENAI: 240, LANGGRAPH: 24},
    nights=1,
    night={OPENAI: 48, LANGGRAPH: 8},
    samples=1,
    test={OPENAI: 16, LANGGRAPH: 8},
    unseen_share=0.25,
    largest=9,
    concurrency={OPENAI: 12, LANGGRAPH: 8},
    base=Settings(learning_rate=4e-3, epochs=8, batch_size=16),
    algorithm="reinforce",
    night_settings=Settings(learning_rate=2e-4, epochs=1, kl_beta=0.1, batch_size=64),
    successes=None,
)
