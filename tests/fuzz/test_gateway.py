"""Requests made from the gateway's and the feedback API's OpenAPI documents: none fails inside, and none that was refused leaves a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench.fuzz.drawn import check_drawn
from bench.fuzz.feedback import FeedbackTarget
from bench.fuzz.gateway import GatewayTarget, gateway_target
from bench.fuzz.served import Served, serving
from tests.helpers.examples import few

RUNS, EXAMPLES = 2, few(100)  # of each; 20,000 of them: python -m bench.fuzz --target gateway --n 20000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fuzz")) as served:
        yield served


@pytest.fixture(scope="module")
def gateway(served: Served) -> Iterator[GatewayTarget]:
    with gateway_target(served) as target:
        yield target


@pytest.fixture(scope="module")
def feedback(served: Served) -> Iterator[FeedbackTarget]:
    target = FeedbackTarget(served)
    yield target
    target.close()


@pytest.mark.parametrize("number", range(RUNS))
def test_gateway(gateway: GatewayTarget, number: int) -> None:
    check_drawn(gateway.requests(), gateway.check, EXAMPLES, number)
    assert gateway.answers["200"] > EXAMPLES * (number + 1) // 10, (
        "hardly a request is answered: nothing is tried"
    )
    assert gateway.answers["400"] > EXAMPLES // 25, "hardly a request is refused: nothing is tried"
    gateway.settle()


@pytest.mark.parametrize("number", range(RUNS))
def test_feedback(feedback: FeedbackTarget, number: int) -> None:
    check_drawn(feedback.requests(), feedback.check, EXAMPLES, number)
    assert feedback.answers["200"] > EXAMPLES * (number + 1) // 12, (
        "hardly a request is taken: nothing is tried"
    )
    assert feedback.answers["422"] > EXAMPLES * (number + 1) // 12, (
        "hardly a request is refused: nothing is tried"
    )
    feedback.settle()
