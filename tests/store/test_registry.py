"""The registry: versions, aliases, and an audit trail whose order never wavers."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from spanloop_store import Engine, RegistryError, registry


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(f"chdb://{tmp_path_factory.mktemp('registry')}/s") as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Any:
    client = engine.client()
    for table in ("resources", "promotions", "evaluations", "datasets", "training_runs"):
        client.command(f"TRUNCATE TABLE {table}")
    return client


def test_versions_count_up_per_name(client: Any) -> None:
    first = registry.register_model(client, "calc", "/a", metadata={"it's": ["ü"]})
    second = registry.register_model(
        client, "calc", "/b", parent=first.id, dataset_id="d", training_run_id="r"
    )
    other = registry.register_model(client, "other", "/c")
    assert [first.id, second.id, other.id] == ["calc@1", "calc@2", "other@1"]
    found = registry.resolve(client, "calc@2")
    assert (found.uri, found.parent, found.dataset_id) == ("/b", "calc@1", "d")
    assert registry.versions(client, "calc")[0].metadata == {"it's": ["ü"]}
    assert len(registry.versions(client)) == 3


def test_the_newest_move_counts_even_in_one_instant(client: Any) -> None:
    for _ in range(3):
        registry.register_model(client, "calc", "/x")
    moves = [1, 2, 3, 1, 3, 2, 1, 2]
    for version in moves:
        registry.point_alias(client, "calc", "candidate", version, action="point", who="w", why="it's so")
        assert registry.resolve(client, "calc@candidate").version == version
    trail = registry.promotions(client)
    assert [line.version for line in trail] == moves
    assert [line.previous_version for line in trail] == [0, *moves[:-1]]
    assert trail[0].why == "it's so"


def test_a_rejection_moves_nothing(client: Any) -> None:
    registry.register_model(client, "calc", "/x")
    registry.register_model(client, "calc", "/y")
    registry.point_alias(client, "calc", "production", 1, action="promote", evaluation_id="e")
    registry.point_alias(client, "calc", "production", 2, action="reject", evaluation_id="f")
    assert registry.resolve(client, "calc").id == "calc@1"
    assert [line.action for line in registry.promotions(client, "calc")] == ["promote", "reject"]
    registry.point_alias(client, "calc", "production", 2, action="promote")
    registry.point_alias(client, "calc", "production", 1, action="rollback")
    assert registry.resolve(client, "calc@production").version == 1


@pytest.mark.parametrize("reference", ["nobody", "calc", "calc@candidate", "calc@7", "calc@nonsense"])
def test_unknown_references_list_what_there_is(client: Any, reference: str) -> None:
    registry.register_model(client, "calc", "/x")
    with pytest.raises(RegistryError) as caught:
        registry.resolve(client, reference)
    assert "calc" in caught.value.message
    assert caught.value.hint


def test_wrong_moves_are_refused(client: Any) -> None:
    registry.register_model(client, "calc", "/x")
    with pytest.raises(RegistryError):
        registry.point_alias(client, "calc", "staging", 1, action="promote")
    with pytest.raises(RegistryError):
        registry.point_alias(client, "calc", "production", 1, action="shove")
    with pytest.raises(RegistryError):
        registry.point_alias(client, "calc", "production", 2, action="promote")
    with pytest.raises(RegistryError):
        registry.register_model(client, "a@b", "/x")
    assert registry.promotions(client) == []


def test_records_round_trip(client: Any) -> None:
    dataset = registry.Dataset("sha", "/d", "", 3, 9, {"id": "sha"})
    registry.record_dataset(client, dataset)
    registry.record_dataset(client, dataset)
    assert client.command("SELECT count() FROM datasets") == 1
    now = datetime.now(UTC)
    run = registry.TrainingRun("r", now, now, "sft", "sha", "b", "/o", "ok", {"loss": 1})
    registry.record_training_run(client, run)
    registry.record_training_run(client, run)
    assert client.command("SELECT count() FROM training_runs") == 1
    assert client.command("SELECT status FROM training_runs") == "ok"
    made = registry.Evaluation("e1", "sha", "a@1", "a@2", 400, 0.1, 0.5, 0.4, 0.3, 0.5, {"agents": {"x": 1}})
    registry.record_evaluation(client, made)
    found = registry.evaluation(client, "e1")
    assert (found.candidate, found.gain_ci95_low, found.details) == ("a@2", 0.3, {"agents": {"x": 1}})
    assert [item.id for item in registry.evaluations(client)] == ["e1"]
    with pytest.raises(RegistryError, match="e1"):
        registry.evaluation(client, "e2")
