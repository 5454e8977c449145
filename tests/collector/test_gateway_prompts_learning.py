"""What becomes a version, what a place, what another prompt: sequences of calls as agents make them, and the real store."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.stores import laid

from spanloop_collector.gateway.privacy import Privacy
from spanloop_collector.gateway.prompts.index import MIN_FIXED_CHARS
from spanloop_collector.gateway.prompts.known import Caller
from spanloop_collector.gateway.prompts.learning import Learner
from spanloop_store import Engine, registry
from spanloop_store.prompts import PromptVersion, register_prompt, revise_prompt

CALLER = Caller("", "small-model", frozenset({"search"}))
SUPPORT = """You are the support agent of a bakery.
Answer in the customer's language, in at most three short sentences.
Never promise a refund; offer to ask the manager instead.
If you do not know something, say so and ask for the order number."""
RNG = random.Random(4)
VOCABULARY = ["".join(RNG.choices("abcdefghijklmnoprstuvwyz", k=RNG.randint(3, 9))) for _ in range(3000)]


def prose(words: int, rng: random.Random) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(words)) + "."


@dataclass
class StoreRegistry:
    client: Any

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        return register_prompt(self.client, name, content, parent=parent, metadata=metadata)

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        return revise_prompt(self.client, version, content=content, same_as=same_as)


@dataclass
class House:
    """A learner on the real registry, called as the gateway calls it."""

    client: Any
    redact: Callable[[str], str] = str
    learner: Learner = field(init=False)
    learnt: int = 0  # texts that were not known when they came

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.learner = Learner(StoreRegistry(self.client), self.redact)
        self.learner.load(registry.prompts(self.client))

    def call(self, text: str, caller: Caller = CALLER, session: str = "") -> str:
        """NAME@VERSION that the call is known as, at its end."""
        found = self.learner.index.find(caller.service, text)
        if found is None:
            self.learnt += 1
            self.learner.learn(text, caller, session)
            found = self.learner.index.find(caller.service, text)
            assert found is not None
        else:
            self.learner.seen(
                found.entry.name, found.entry.version, session, hash(tuple(found.values.values()))
            )
        assert found.entry.template.render(found.values) == text
        return found.entry.id

    def live(self) -> list[str]:
        return [version.id for version in registry.prompts(self.client) if not version.same_as]

    def content(self, reference: str) -> str:
        return registry.prompt(self.client, reference).content


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(laid(tmp_path_factory.mktemp("prompts") / "s")) as engine:
        yield engine


@pytest.fixture
def house(engine: Engine) -> House:
    client = engine.client()
    for table in ("resources", "promotions"):
        client.command(f"TRUNCATE TABLE {table}")
    return House(client)


def test_the_same_text_is_one_version(house: House) -> None:
    assert {house.call(SUPPORT) for _ in range(20)} == {"small-model@1"}
    assert house.learnt == 1
    house.restart()
    assert house.call(SUPPORT) == "small-model@1"
    assert house.learnt == 1


@pytest.mark.parametrize(
    "values",
    [
        [f"2026-{month:02}-{day:02}" for month in (3, 4) for day in range(27, 31)],
        ["March 30, 2026", "March 31, 2026", "April 1, 2026", "April 11, 2026", "May 2, 2026"],
        ["Monday, 30 March 2026", "Tuesday, 31 March 2026", "Wednesday, 1 April 2026"],
        ["2026-03-30T09:59:12Z", "2026-03-30T10:00:01.5Z", "2026-12-24T00:00:00Z"],
        ["9:05 am", "10:20 AM", "23:59 UTC"],
        ["user_10234", "user_99811", "user_10777"],
        ["3f2b8c1e-0d4a-4c1b-9f6e-2a7d5b8c9e01", "7d1f0c5a-9b3e-4f2d-8a6c-1e4b7d9f0a23"],
        ["anna@example.com", "bob.b@example.org"],
        ["2026年3月30日", "2026年4月1日"],
    ],
    ids=["iso", "english", "weekday", "timestamp", "clock", "id", "uuid", "mail", "cjk"],
)
def test_a_date_or_an_id_is_a_place_from_its_second_value_on(house: House, values: list[str]) -> None:
    text = SUPPORT + "\nNow: {}.\nBe kind."
    assert {house.call(text.format(value)) for value in values} == {"small-model@1"}
    assert house.live() == ["small-model@1"]
    assert house.content("small-model@1") == text.format("{{variable_1}}")
    assert house.learnt <= 3  # the first two, and one that ends the places' last doubt


def test_what_stood_in_a_place_leaves_the_store(house: House) -> None:
    for day in ("2026-03-30", "2026-03-31"):
        house.call(f"{SUPPORT} Today is {day}.")
    contents = house.client.query("SELECT content FROM resources").result_rows
    assert contents == [(f"{SUPPORT} Today is {{{{variable_1}}}}.",)]


def test_user_names_become_a_place_once_four_have_come_and_gone(house: House) -> None:
    names = ["Anna", "Bob", "Carla Maria", "Dimitri", "Eve", "Fatima", "Guo", "Héloïse", "Ivan"]
    rng = random.Random(1)
    for _ in range(60):
        house.call(f"You are talking to {rng.choice(names)}.\n{SUPPORT}")
    assert len(house.live()) == 1
    (only,) = house.live()
    assert house.content(only) == f"You are talking to {{{{variable_1}}}}.\n{SUPPORT}"
    assert house.learnt <= 4
    # The first texts are cases of it, no longer versions of their own, and no name is left in the store.
    stored = str(house.client.query("SELECT content FROM resources").result_rows)
    assert not [name for name in names if name in stored]
    assert house.call(f"You are talking to Anna.\n{SUPPORT}") == only
    assert house.call(f"You are talking to somebody quite new.\n{SUPPORT}") == only


def test_an_edited_sentence_is_a_new_version_with_the_same_places(house: House) -> None:
    before = SUPPORT + "\nToday is {}."
    after = before.replace("Never promise a refund", "Promise a refund only below 20 euros")
    for day in range(10, 15):
        assert house.call(before.format(f"2026-03-{day}")) == "small-model@1"
    for day in range(15, 25):
        assert house.call(after.format(f"2026-03-{day}")) == "small-model@2"
    assert house.live() == ["small-model@1", "small-model@2"]
    assert registry.prompt(house.client, "small-model@2").parent == "small-model@1"
    assert house.content("small-model@2") == after.format("{{variable_1}}")
    assert house.call(before.format("2026-03-25")) == "small-model@1"  # rolled back by its developer


def test_a_word_beside_an_established_place_is_an_edit(house: House) -> None:
    text = "Today is {}.\n" + SUPPORT
    for day in range(10, 20):
        house.call(text.format(f"2026-03-{day}"))
    edited = text.replace("Today is", "Today was")
    assert house.call(edited.format("2026-03-20")) == "small-model@2"
    assert house.call(edited.format("2026-03-21")) == "small-model@2"
    assert house.content("small-model@1") == text.format("{{variable_1}}")
    assert house.content("small-model@2") == edited.format("{{variable_1}}")


def test_five_edits_of_one_sentence_are_five_versions(house: House) -> None:
    """Each stays from one deployment on: none comes back after the next."""
    limits = ["three short", "two", "as few as possible", "four or fewer", "exactly three"]
    for limit in limits:
        for _ in range(30):
            house.call(SUPPORT.replace("at most three short", f"at most {limit}"))
    assert house.live() == [f"small-model@{number}" for number in range(1, 6)]


@pytest.mark.parametrize(("hours", "versions"), [(24, 9), (0.1, 1)], ids=["a-day-each", "minutes-each"])
def test_what_stayed_for_long_needs_more_evidence(house: House, hours: float, versions: int) -> None:
    """Nine texts that differ in one phrase, each of which followed the last one for good."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    for number, word in enumerate(VOCABULARY[:8]):
        text = SUPPORT.replace("bakery", word)
        made = house.learner._registry.register(
            "small-model",
            text,
            "",
            {"origin": "agent", "agent": "", "model": "small-model", "tools": ["search"]},
        )
        house.client.command(
            "ALTER TABLE resources UPDATE created = {created:DateTime64(9)} WHERE version = {version:UInt32}"
            " SETTINGS mutations_sync = 2",
            parameters={"created": start + timedelta(hours=hours * number), "version": made.version},
        )
    house.restart()
    house.call(SUPPORT)
    assert len(house.live()) == versions


def test_a_changed_number_is_an_edit_until_it_has_had_three_values(house: House) -> None:
    text = SUPPORT + "\nYou may call the search tool {} times."
    assert [house.call(text.format(n)) for n in (3, 3, 5, 5)] == [
        "small-model@1", "small-model@1", "small-model@2", "small-model@2",
    ]  # fmt: skip
    assert house.call(text.format(7)) == "small-model@1"
    assert house.live() == ["small-model@1"]


def test_a_number_that_changes_within_a_session_is_a_place_at_once(house: House) -> None:
    text = SUPPORT + "\nSteps left: {}."
    assert {house.call(text.format(n), session="s") for n in (9, 8, 7, 6)} == {"small-model@1"}
    assert house.live() == ["small-model@1"]


def test_two_prompts_on_trial_stay_two_versions(house: House) -> None:
    other = SUPPORT.replace(
        "Never promise a refund; offer to ask the manager", "Be generous and ask the manager"
    )
    rng = random.Random(2)
    seen = [house.call(rng.choice((SUPPORT, other)), session=f"session-{n // 4}-{n % 4}") for n in range(200)]
    assert set(seen) == {"small-model@1", "small-model@2"}
    assert len(house.live()) == 2


def test_three_prompts_on_trial_stay_three_versions(house: House) -> None:
    arms = [
        SUPPORT.replace("at most three short", f"at most {limit}")
        for limit in ("three short", "two", "ten long")
    ]
    seen = [house.call(text) for text in (*arms[:2], *arms[:2], *arms, *arms)]
    assert len(set(seen)) == 3
    assert len(house.live()) == 3


def test_the_template_that_says_most_is_the_one(house: House) -> None:
    """The text is a case of both: the general one came first, or last."""
    for name in ("general", "special", "general-too"):
        place = "{{all}}" if name != "special" else "{{day}}.\nBe brief"
        register_prompt(house.client, name, f"{SUPPORT}\nToday is {place}.")
    house.restart()
    assert house.call(f"{SUPPORT}\nToday is Monday.\nBe brief.") == "special@1"


def test_retrieved_documents_become_one_place(house: House) -> None:
    rng = random.Random(3)
    fixed = prose(60, rng)
    seen = []
    for _ in range(60):
        documents = "\n\n".join(prose(rng.randint(30, 400), rng) for _ in range(rng.randint(1, 5)))
        seen.append(
            house.call(f"{fixed}\n\nContext:\n{documents}\n\nAnswer from the context only, or say no.")
        )
    (only,) = house.live()
    assert set(seen[20:]) == {only}
    assert house.learnt < 15
    assert house.content(only).startswith(fixed)
    assert house.content(only).endswith("Answer from the context only, or say no.")


def test_two_agents_at_once_are_two_prompts(house: House) -> None:
    rng = random.Random(5)
    first, second = prose(80, rng), prose(90, rng)
    seen = {text: set[str]() for text in (first, second)}
    for day in range(10, 30):
        for text in rng.sample([first, second], 2):
            seen[text].add(house.call(f"{text}\nDate: 2026-03-{day}"))
    assert sorted(map(len, seen.values())) == [1, 1]
    assert sorted(house.live()) == ["small-model-2@1", "small-model@1"]


def test_workers_that_share_a_preamble_are_told_apart_by_their_sessions(house: House) -> None:
    """Their prompts differ in a fifth, as after an edit; but no edit goes back and forth in one conversation."""
    rng = random.Random(6)
    preamble = prose(120, rng)
    jobs = {
        name: f"{preamble}\nYou are the {name}. {prose(25, rng)}"
        for name in ("supervisor", "writer", "critic")
    }
    caller = Caller("", "m", frozenset())
    seen: dict[str, str] = {}
    for session in range(5):
        for name in ("supervisor", "writer", "supervisor", "critic", "supervisor"):
            seen[name] = house.call(jobs[name], caller, session=f"session-{session}")
    assert len({version.partition("@")[0] for version in seen.values()}) == 3
    assert len(house.live()) == 3


def test_other_tools_are_another_agent(house: House) -> None:
    rng = random.Random(7)
    preamble = prose(100, rng)
    writer, critic = (f"{preamble} You are the {name}." for name in ("writer", "critic"))
    assert house.call(writer, Caller("", "m", frozenset({"write"}))) == "m@1"
    assert house.call(critic, Caller("", "m", frozenset({"judge"}))) == "m-2@1"
    # The last step of an agent often offers no tools: a text that is known needs no further evidence.
    assert house.call(writer, Caller("", "m", frozenset())) == "m@1"


def test_services_do_not_share_prompts(house: House) -> None:
    assert house.call(SUPPORT, Caller("shop", "m")) == "shop@1"
    assert house.call(SUPPORT, Caller("bank@eu", "m")) == "bank-eu@1"
    assert house.call(SUPPORT, Caller("shop", "another-model")) == "shop@1"


def test_short_prompts_are_not_alike_by_chance(house: House) -> None:
    texts = [
        "You are terse.",
        "You are kind.",
        "You are a pirate.",
        "You are Bob.",
        "You are Eve.",
        "You speak Latin.",
    ]
    for _ in range(5):
        for text in texts:
            house.call(text)
    assert len(house.live()) == len(texts)
    assert house.learnt == len(texts)


def test_a_template_that_a_person_wrote_is_recognised_and_never_rewritten(house: House) -> None:
    content = SUPPORT + "\nThe customer is {{customer}}, today is {{today}}."
    register_prompt(house.client, "bakery", content)
    house.restart()
    assert house.call(content.replace("{{customer}}", "Anna B.").replace("{{today}}", "Monday")) == "bakery@1"
    assert house.learnt == 0
    edited = content.replace("Never promise", "Do not promise").replace("{{customer}}", "Bob")
    assert house.call(edited.replace("{{today}}", "Friday")) == "bakery@2"
    assert house.content("bakery@1") == content
    assert house.content("bakery@2").endswith("The customer is {{customer}}, today is {{today}}.")


def test_braces_and_backslashes_of_a_text_are_no_places(house: House) -> None:
    text = SUPPORT + "\nWrite {{name}} and \\{{name}} and {{variable_1}} as they are. Today: {}"
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        house.call(text.replace("{}", day))
    house.restart()
    assert house.call(text.replace("{}", "2026-04-01")) == "small-model@1"
    assert registry.prompt(house.client, "small-model@1").template.names == ("variable_1",)


def test_secrets_do_not_reach_the_store_and_the_prompt_is_known_all_the_same(house: House) -> None:
    house.redact = lambda text: text.replace("sk-s3cret-ключ", "xx-000000-00000000")
    house.restart()
    text = f"{SUPPORT}\nThe shop's key is sk-s3cret-ключ. Today is {{}}."
    for start in range(3):
        for day in range(1, 4):
            assert house.call(text.format(f"2026-0{start + 1}-0{day}")) == "small-model@1"
        house.restart()
    stored = house.client.query("SELECT content, metadata FROM resources").result_rows
    assert len(stored) == 1
    assert "ключ" not in str(stored)
    assert "xx-000000-00000000" in str(stored)


def test_the_redaction_that_the_gateway_has_leaves_one_prompt_one_version(
    house: House, tmp_path: Path
) -> None:
    house.redact = Privacy.of_environment(tmp_path).text
    house.restart()
    key = "sk-proj-" + "a1B2c3D4" * 6
    text = f"{SUPPORT}\nWrite to boss@bakery.example, key {key}. Today is {{}}, the customer is {{}}."
    for day in range(1, 6):
        assert house.call(text.format(f"2026-03-0{day}", f"u{day}@mail.example.org")) == "small-model@1"
    stored = str(house.client.query("SELECT * FROM resources").result_rows)
    assert "bakery.example" not in stored
    assert "a1B2c3D4" not in stored
    assert house.content("small-model@1").endswith("Today is {{variable_1}}, the customer is {{variable_2}}.")
    house.restart()
    assert house.call(text.format("2026-04-01", "zoe.q@mail.com")) == "small-model@1"


def test_an_agent_whose_every_prompt_is_another_one_is_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spanloop_collector.gateway.prompts.learning.MAX_VERSIONS", 5)
    rng = random.Random(8)
    for _ in range(20):
        house.learner.learn(prose(30, rng), CALLER)
    assert len(house.live()) == 5
    assert len([line for line in caplog.messages if "no more are learnt" in line]) == 1


@pytest.mark.parametrize("limit", ["MAX_KNOWN", "MAX_KNOWN_CHARS"])
def test_ever_new_services_are_given_up_too(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    """Whoever calls names the service: a header that differs each time must not fill store and memory."""
    text = "You are the support agent of a bakery, and kind."
    size = {"MAX_KNOWN": 5, "MAX_KNOWN_CHARS": 5 * len(text)}[limit]
    monkeypatch.setattr(f"spanloop_collector.gateway.prompts.learning.{limit}", size)
    for number in range(20):
        house.learner.learn(text, Caller(f"service-{number}"))
    assert len(house.live()) == 5
    assert len([line for line in caplog.messages if "no more are learnt" in line]) == 1


def test_a_long_prompt_is_learnt_too(house: House) -> None:
    rng = random.Random(9)
    paragraphs = [prose(100, rng) for _ in range(170)]
    assert len("\n".join(paragraphs)) > 100_000
    for day in range(1, 6):
        text = "\n".join([*paragraphs[:80], f"Today is 2026-03-0{day}.", *paragraphs[80:]])
        assert house.call(text) == "small-model@1"
    edited = "\n".join(
        [*paragraphs[:20], prose(100, rng), *paragraphs[21:80], "Today is 2026-04-04.", *paragraphs[80:]]
    )
    assert house.call(edited) == "small-model@2"
    assert house.call(edited.replace("04-04", "04-05")) == "small-model@2"
    assert registry.prompt(house.client, "small-model@1").template.fixed_chars > MIN_FIXED_CHARS
