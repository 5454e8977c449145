"""The gate on a real store: what it lets through, what it refuses, and that both are on record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.helpers.stores import laid

from spanloop.commands.promote import command
from spanloop_store import RegistryError, connect, registry
from spanloop_trainer.errors import PromotionRejected
from spanloop_trainer.promotion import promote


@pytest.fixture
def store(tmp_path: Path) -> str:
    return laid(tmp_path / "store")


@pytest.fixture
def client(store: str) -> Iterator[Any]:
    with closing(connect(store)) as opened:
        for number in range(3):
            registry.register_model(opened, "m", f"/models/{number}")
        yield opened


def won(client: Any, name: str, candidate: str = "m@2", baseline: str = "m@1", low: float = 0.1) -> str:
    registry.record_evaluation(
        client,
        registry.Evaluation(
            name, "data", baseline, candidate, 400, 0.3, 0.3 + low + 0.05, low + 0.05, low, low + 0.1
        ),
    )
    return name


def production(client: Any) -> list[str]:
    return [
        f"{entry.name}@{entry.version}" for entry in registry.aliases(client) if entry.alias == "production"
    ]


def test_a_winner_becomes_production(client: Any) -> None:
    decision = promote(client, "m@2", evaluation_id=won(client, "e1"), who="me", why="night")
    assert decision.promoted
    assert production(client) == ["m@2"]
    row = registry.promotions(client)[-1]
    assert (row.action, row.who, row.evaluation_id, row.dataset_id) == ("promote", "me", "e1", "data")
    assert "gain +0.150" in row.why
    assert row.why.endswith("night")


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        (None, "no evaluation"),
        ({"low": 0.0}, "not above 0"),
        ({"low": -0.2}, "not above 0"),
        ({"low": float("nan")}, "not above 0"),
        ({"candidate": "m@3"}, "judges m@3"),
        ({"baseline": "m@3"}, "m@1 is in production"),
    ],
)
def test_anything_else_is_refused_and_recorded(
    client: Any, evaluation: dict[str, Any] | None, reason: str
) -> None:
    promote(client, "m@1", evaluation_id=won(client, "first", candidate="m@1", baseline="m@3"))
    given = None if evaluation is None else won(client, "e", **evaluation)
    with pytest.raises(PromotionRejected, match=reason):
        promote(client, "m@2", evaluation_id=given)
    assert production(client) == ["m@1"]
    row = registry.promotions(client)[-1]
    assert (row.action, row.version) == ("reject", 2)
    assert reason in row.why


def test_candidate_moves_freely_and_leaves_production(client: Any) -> None:
    promote(client, "m@2", evaluation_id=won(client, "e1"))
    assert promote(client, "m@3", "candidate").promoted
    assert production(client) == ["m@2"]
    assert [row.action for row in registry.promotions(client)] == ["promote", "point"]


def test_what_is_unknown_leaves_no_row(client: Any) -> None:
    for ref, evaluation in (("m@9", None), ("n@1", None), ("m@2", "no such evaluation")):
        with pytest.raises(RegistryError):
            promote(client, ref, evaluation_id=evaluation)
    assert registry.promotions(client) == []


def test_the_command_moves_and_refuses(store: str) -> None:
    with closing(connect(store)) as opened:
        registry.register_model(opened, "m", "/models/1")
    moved = CliRunner().invoke(command, ["m@1", "--alias", "candidate", "--store", store])
    assert (moved.exit_code, moved.output) == (0, "candidate is m@1: candidate moves without an evaluation\n")
    refused = CliRunner().invoke(command, ["m@1", "--store", store])
    assert isinstance(refused.exception, PromotionRejected)
