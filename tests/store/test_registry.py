"""The registry: versions, aliases, and an audit trail whose order never wavers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.helpers.stores import laid

from spanloop_store import Engine, RegistryError, registry
from spanloop_store.prompts import revise_prompt


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(laid(tmp_path_factory.mktemp("registry") / "s")) as engine:
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


def test_prompts_count_up_and_the_same_text_is_the_same_version(client: Any) -> None:
    shots = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    first = registry.register_prompt(
        client, "bakery", "You are {{who}}.", metadata={"agent": "shop", "note": "ü'"}
    )
    second = registry.register_prompt(client, "bakery", "You are {{who}}.", examples=shots, parent=first.id)
    again = registry.register_prompt(client, "bakery", "You are {{who}}.")
    other = registry.register_prompt(client, "bank", "You count.")
    assert [first.id, second.id, again.id, other.id] == ["bakery@1", "bakery@2", "bakery@1", "bank@1"]
    found = registry.prompts(client, "bakery")
    assert [version.examples for version in found] == [(), tuple(shots)]
    assert found[1].metadata["agent"] == "shop"  # a name's agent goes on from its first version
    assert (found[1].parent, found[0].template.names) == ("bakery@1", ("who",))
    # Models and prompts of one name do not meet.
    registry.register_model(client, "bakery", "/m")
    assert [version.id for version in registry.versions(client)] == ["bakery@1"]


@pytest.mark.parametrize("kind", ["model", "prompt"])
def test_two_who_take_one_number_at_once_get_two(client: Any, kind: str) -> None:
    """The row of another process that came first, between our look and our insert."""
    column_names = ["kind", "name", "version", "content", "uri", "metadata"]
    taken = [kind, "p", 1, "theirs", "theirs", '{"key": "other"}']

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def insert(self, *args: Any, **options: Any) -> Any:
            if not client.command("SELECT count() FROM resources"):
                client.insert("resources", [taken], column_names=column_names)
            return client.insert(*args, **options)

    interrupted: Any = Interrupted()
    register = registry.register_model if kind == "model" else registry.register_prompt
    assert register(interrupted, "p", "ours").id == "p@2"
    found: list[Any] = registry.versions(client) if kind == "model" else registry.prompts(client)
    said = [(one.version, one.uri if kind == "model" else one.content) for one in found]
    assert said == [(1, "theirs"), (2, "ours")]
    assert client.command("SELECT count() FROM resources") == 2  # what came too late is gone


def test_registered_by_many_at_once_all_have_their_own_number(client: Any, engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(
                lambda number: registry.register_model(
                    engine.client(), "m", f"/{number}", metadata={"n": number}
                ),
                range(12),
            )
        )
    assert len({one.version for one in made}) == 12  # a number that two wanted may be left out
    assert {(one.version, one.uri, one.metadata["n"]) for one in registry.versions(client)} == {
        (one.version, f"/{number}", number) for number, one in enumerate(made)
    }
    assert all(set(one.metadata) == {"n"} for one in made)


def test_a_learnt_version_is_revised_in_place_and_a_written_one_never(client: Any) -> None:
    learnt = registry.register_prompt(client, "p", "Hi Anna", metadata={"origin": "agent"})
    written = registry.register_prompt(client, "p", "Hi Bob")
    for content in ("Hi {{a}}", "{{a}} {{b}}"):
        learnt = revise_prompt(client, learnt, content=content)
    revise_prompt(client, learnt, same_as="p@2")
    found = registry.prompt(client, "p@1")
    assert (found.content, found.same_as, found.revision) == ("{{a}} {{b}}", "p@2", 3)
    assert found.created == registry.prompts(client)[0].created
    assert client.command("SELECT count() FROM resources WHERE content LIKE '%Anna%'") == 0
    with pytest.raises(RegistryError):
        revise_prompt(client, written, content="x")


def test_prompt_aliases_move_and_roll_back_step_by_step(client: Any) -> None:
    for number in range(1, 4):
        registry.register_prompt(client, "p", f"text {number}")
        registry.register_model(client, "p", f"/m{number}")
    for number in (2, 3, 1):
        registry.point_alias(
            client, "p", "production", number, action="point", kind="prompt", who="w", why="y"
        )
    registry.point_alias(client, "p", "candidate", 3, action="point", kind="prompt")
    assert registry.prompt(client, "p").id == "p@1"
    assert registry.prompt(client, "p@candidate").id == "p@3"
    assert registry.aliases(client) == []  # of models
    steps = [registry.roll_back(client, "p", kind="prompt", who="w", why="no") for _ in range(3)]
    assert [(step.previous_version, step.version, step.action) for step in steps] == [
        (1, 3, "rollback"),
        (3, 2, "rollback"),
        (2, 0, "rollback"),
    ]
    assert [alias.alias for alias in registry.aliases(client, "prompt")] == ["candidate"]
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.roll_back(client, "p", kind="prompt")
    registry.point_alias(client, "p", "production", 2, action="point", kind="prompt")
    registry.point_alias(client, "p", "production", 3, action="reject", kind="prompt")
    assert registry.roll_back(client, "p", kind="prompt").version == 0
    assert len(registry.promotions(client, "p", "production", "prompt")) == 9


def test_a_model_rolls_back_to_a_version_only(client: Any) -> None:
    for number in range(1, 3):
        registry.register_model(client, "m", f"/m{number}")
        registry.point_alias(client, "m", "production", number, action="promote")
    assert registry.roll_back(client, "m", who="w", why="worse").version == 1
    assert registry.resolve(client, "m").id == "m@1"
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.roll_back(client, "m")
    with pytest.raises(RegistryError, match="no model 'nobody'"):
        registry.roll_back(client, "nobody")


@pytest.mark.parametrize(
    ("name", "content", "examples"),
    [
        ("a@b", "x", []),
        ("", "x", []),
        ("p", " \n", []),
        ("p", "x", [{"role": "robot", "content": "x"}]),
        ("p", "x", [{"role": "user"}]),
        ("p", "x", ["text"]),
    ],
    ids=["at", "no-name", "empty", "role", "no-content", "no-message"],
)
def test_what_cannot_be_a_prompt_is_refused(client: Any, name: str, content: str, examples: Any) -> None:
    with pytest.raises(RegistryError) as caught:
        registry.register_prompt(client, name, content, examples=examples)
    assert caught.value.hint
    assert registry.prompts(client) == []


@pytest.mark.parametrize("reference", ["nobody", "p@candidate", "p@7"])
def test_unknown_prompts_list_what_there_is(client: Any, reference: str) -> None:
    registry.register_prompt(client, "p", "x")
    with pytest.raises(RegistryError) as caught:
        registry.prompt(client, reference)
    assert "p" in caught.value.message
    assert caught.value.hint
