"""The hook of the plan step: where a prompt is found, what is put in its place and when not; with the real registry."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.stores import laid

from spanloop_collector.gateway.prompts import Applied, Book, BookReader, Prompts, words
from spanloop_collector.gateway.prompts.finding import find
from spanloop_collector.gateway.prompts.service import MAX_CHARS
from spanloop_collector.gateway.versions import Snapshot
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_store import Engine, StoreUnavailable, registry
from spanloop_store.prompts import PromptVersion, register_prompt, revise_prompt
from spanloop_store.templates import Template

TEXT = "You are the support agent of a bakery, and kind. Today is {}."
USER = {"role": "user", "content": "Is there rye bread?"}
SHOTS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "It is {{variable_1}}."}]


@dataclass
class StoreRegistry:
    """As the gateway's own, on a client that is there."""

    client: Any
    away: bool = False

    def _here(self) -> None:
        if self.away:
            raise StoreUnavailable("the store is away", "wait")

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        self._here()
        return register_prompt(self.client, name, content, parent=parent, metadata=metadata)

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        self._here()
        return revise_prompt(self.client, version, content=content, same_as=same_as)


@dataclass
class House:
    client: Any
    redact: Callable[[str], str] = str
    prompts: Prompts = field(init=False)
    registry: StoreRegistry = field(init=False)
    read: BookReader = field(default_factory=BookReader)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.registry = StoreRegistry(self.client)
        self.prompts = Prompts(self.registry, self.redact)
        self.prompts.start()

    def restart(self) -> None:
        self.prompts.stop()
        self.start()

    def apply(self, body: dict[str, Any], **options: Any) -> Applied:
        """One call, with what the registry says by now; learnt when it returns, and `body` as it was."""
        before = copy.deepcopy(body)
        applied = self.prompts.apply(body, Snapshot(prompts=self.read(self.client)), **options)
        assert body == before
        assert self.prompts.settle(30)
        return applied

    def learn(self, days: int = 2) -> None:
        """small@1, with the date as variable_1."""
        for day in range(1, days + 1):
            self.apply(chat(TEXT.format(f"2026-03-0{day}")))

    def point(self, version: int, alias: str = "production", name: str = "small") -> None:
        registry.point_alias(self.client, name, alias, version, action="point", kind="prompt")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(laid(tmp_path_factory.mktemp("prompts") / "s")) as engine:
        yield engine


@pytest.fixture
def house(engine: Engine) -> Iterator[House]:
    client = engine.client()
    for table in ("resources", "promotions"):
        client.command(f"TRUNCATE TABLE {table}")
    house = House(client)
    yield house
    house.prompts.stop()


def chat(system: Any, *messages: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": "small",
        "messages": [{"role": "system", "content": system}, *(messages or [USER])],
        **more,
    }


PLACED = "You sell bread. Date: 2026-03-09."
SENT = TEXT.format("2026-03-09")
HALVES = ["You are the support agent of a bakery,", "and kind. Today is 2026-03-09."]
CACHE = {"cache_control": {"type": "ephemeral"}}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": (chat(SENT), chat(PLACED)),
    "developer": (
        {"model": "small", "messages": [{"role": "developer", "content": SENT}, USER]},
        {"model": "small", "messages": [{"role": "developer", "content": PLACED}, USER]},
    ),
    "part": (
        chat([{"type": "text", "text": SENT, **CACHE}]),
        chat([{"type": "text", "text": PLACED, **CACHE}]),
    ),
    "instructions": (
        {"model": "small", "instructions": SENT, "input": "Rye?", "tools": []},
        {"model": "small", "instructions": PLACED, "input": "Rye?", "tools": []},
    ),
    "input": (
        {"model": "small", "input": [{"role": "developer", "content": [{"type": "input_text", "text": SENT}]}, USER]},
        {"model": "small", "input": [{"role": "developer", "content": [{"type": "input_text", "text": PLACED}]}, USER]},
    ),
    "only": ({"model": "small", "messages": [{"role": "system", "content": SENT}]},
             {"model": "small", "messages": [{"role": "system", "content": PLACED}]}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_promoted_prompt_takes_the_place_of_the_agents(house: House, shape: str) -> None:
    house.learn()
    registry.register_prompt(house.client, "small", "You sell bread. Date: {{variable_1}}.", parent="small@1")
    body, placed = SHAPES[shape]
    before = house.apply(body)
    assert (before.body, before.version, before.requested) == (body, "small@1", None)
    assert before.body is body
    house.point(2)
    applied = house.apply(body)
    assert applied.body == placed
    assert (applied.version, applied.requested, applied.skipped) == ("small@2", "small@1", None)
    registry.roll_back(house.client, "small", kind="prompt")
    assert house.apply(body).body is body


def test_several_messages_and_parts_are_one_prompt(house: House) -> None:
    registry.register_prompt(house.client, "small", "{}\n\n{}".format(*HALVES))
    registry.register_prompt(house.client, "small", "Short.")
    house.point(2)
    several = {
        "model": "small",
        "messages": [*({"role": "system", "content": half} for half in HALVES), USER],
    }
    parts = chat([{"type": "text", "text": half} for half in HALVES])
    responses = {
        "model": "small",
        "instructions": HALVES[0],
        "input": [{"role": "developer", "content": HALVES[1]}, USER],
    }
    assert house.apply(several).body == chat("Short.")
    assert house.apply(parts).body == chat([{"type": "text", "text": "Short."}])
    assert house.apply(responses).body == {"model": "small", "instructions": "Short.", "input": [USER]}


@pytest.mark.parametrize(
    "body",
    [
        {"model": "small", "messages": [USER]},
        {"model": "small", "messages": [USER, {"role": "system", "content": TEXT}]},
        {"model": "small", "messages": [{"role": "system", "content": ""}, USER]},
        {"model": "small", "messages": [{"role": "system", "content": None}, USER]},
        {"model": "small", "messages": [{"role": "system", "content": [{"type": "image_url"}]}, USER]},
        {"model": "small", "messages": "nonsense"},
        {"model": "small", "messages": [["system", "x"], 7, None]},
        {"model": "small", "input": "Rye?"},
        {"model": "small", "input": None, "instructions": None},
        {"model": "small", "instructions": {"text": 1}},
        {"model": "small", "messages": [{"role": "system", "content": "x" * (MAX_CHARS + 1)}]},
        {"model": "small", "messages": [{"role": "system", "content": "half a pair: \ud800, and some more words"}]},
        {},
    ],
    ids=[
        "none", "later", "empty", "null", "image", "text", "no-objects", "responses", "nulls", "object", "too-long",
        "surrogate", "nothing",
    ],
)  # fmt: skip
def test_what_has_no_prompt_goes_on_as_it_is(house: House, body: dict[str, Any]) -> None:
    applied = house.apply(body)
    assert applied.body is body
    assert (applied.version, applied.requested, applied.skipped) == (None, None, None)
    assert registry.prompts(house.client) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["system", "developer", "text"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["messages", "input", "instructions", "role", "content", "type", "text", "tools", "function", "name", "model"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["messages", "input", "instructions", "tools", "model"]), JSON))
def test_no_request_breaks_it(body: dict[str, Any]) -> None:
    prompts = Prompts(None)
    before = json.dumps(body)
    assert prompts.apply(body, None).body is body
    assert not prompts._broken
    assert json.dumps(body) == before
    found = find(body)
    assert found is None or found.text


def test_the_first_call_of_a_new_prompt_has_its_name_by_its_end(house: House) -> None:
    applied = house.apply(chat(TEXT))
    assert applied.version == "small@1"


def test_examples_go_behind_the_prompt_and_take_its_values(house: House) -> None:
    house.learn()
    registry.register_prompt(house.client, "small", "Date {{variable_1}}.", examples=SHOTS)
    house.point(2)
    said = [SHOTS[0], {"role": "assistant", "content": "It is 2026-03-09."}]
    assert house.apply(chat(SENT)).body["messages"] == [
        {"role": "system", "content": "Date 2026-03-09."}, *said, USER,
    ]  # fmt: skip
    # Those that the agent has taken over itself are not said twice.
    assert house.apply(chat(SENT, *said, USER)).body["messages"][1:] == [*said, USER]
    responses = {"model": "small", "instructions": SENT, "input": "Rye?"}
    assert house.apply(responses).body == {
        "model": "small",
        "instructions": "Date 2026-03-09.",
        "input": [*said, {"role": "user", "content": "Rye?"}],
    }
    # The server has them from the first turn.
    assert house.apply({**responses, "previous_response_id": "r"}).body["input"] == "Rye?"


def test_examples_with_tool_calls_become_items_of_the_responses_api(house: House) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": "{}"}}
    shots = [
        {"role": "user", "content": "Rye?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3 loaves"},
    ]
    registry.register_prompt(house.client, "small", TEXT, examples=shots)
    house.point(1)
    applied = house.apply({"model": "small", "instructions": TEXT, "input": []})
    assert applied.body["input"] == [
        {"role": "user", "content": "Rye?"},
        {"type": "function_call", "call_id": "c1", "name": "stock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3 loaves"},
    ]
    assert (applied.version, applied.requested) == ("small@1", None)  # the agent's own text, with examples


def test_a_version_that_needs_what_the_call_does_not_say_is_skipped(house: House) -> None:
    house.learn()
    registry.register_prompt(house.client, "small", "{{variable_1}} {{customer}} {{mood}}")
    house.point(2)
    body = chat(SENT)
    applied = house.apply(body)
    assert applied.body is body
    assert (applied.version, applied.requested) == ("small@1", None)
    assert applied.skipped == "small@2: no value for customer, mood"


def test_what_its_developer_writes_after_the_decision_is_not_overruled(house: House) -> None:
    house.learn()
    registry.register_prompt(house.client, "small", "Better, {{variable_1}}.")
    house.point(2)
    edited = chat(SENT.replace("and kind", "and very kind indeed"))
    house.apply(edited)
    applied = house.apply(edited)
    assert (applied.body, applied.version) == (edited, "small@3")
    assert applied.skipped == "small@2: small@3 is newer than the decision for it"
    assert house.apply(chat(SENT)).version == "small@2"
    house.point(2)  # decided again, knowing of the edit
    assert house.apply(edited).requested == "small@3"


def test_the_candidate_is_for_those_who_try_it(house: House) -> None:
    house.learn()
    for text in ("Candidate {{variable_1}}.", "Production {{variable_1}}."):
        registry.register_prompt(house.client, "small", text)
    house.point(2, "candidate")
    assert house.apply(chat(SENT), candidate=True).version == "small@2"
    assert house.apply(chat(SENT)).version == "small@1"
    house.point(3)
    assert house.apply(chat(SENT), candidate=True).version == "small@2"
    assert house.apply(chat(SENT)).version == "small@3"


def test_an_older_version_of_the_developers_takes_its_values_by_name(house: House) -> None:
    house.learn()
    edited = SENT.replace("and kind", "and very kind indeed")
    house.apply(chat(edited))
    house.point(1)
    applied = house.apply(chat(edited))
    assert (applied.version, applied.requested) == ("small@1", "small@2")
    assert applied.body == chat(SENT)


def test_the_first_call_after_a_start_gets_the_promoted_prompt(house: House) -> None:
    house.learn()
    registry.register_prompt(house.client, "small", "Better, {{variable_1}}.")
    house.point(2)
    house.restart()
    assert house.apply(chat(SENT)).version == "small@2"


@pytest.mark.parametrize(
    "headers",
    [{"x-spanloop-service": "shop"}, {"baggage": "session.id=s, service.name = shop ;p=1"}],
    ids=["header", "baggage"],
)
def test_a_service_that_says_its_name_has_prompts_of_its_own(house: House, headers: dict[str, str]) -> None:
    house.apply(chat(TEXT), headers=headers)
    house.apply(chat(TEXT))
    assert [version.id for version in registry.prompts(house.client)] == ["shop@1", "small@1"]


def test_with_the_store_away_calls_go_on_and_the_prompt_is_learnt_later(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    book = house.read(house.client)
    house.registry.away = True
    for _ in range(3):
        body = chat(TEXT)
        applied = house.prompts.apply(body, Snapshot(prompts=book))
        assert applied.body is body
        assert applied.version is None
    assert not house.prompts.settle(0.01)
    house.registry.away = False
    assert house.prompts.settle(30)
    assert applied.version == "small@1"
    assert len([line for line in caplog.messages if "not recorded for now" in line]) <= 1


def test_before_the_registry_was_reached_nothing_is_decided(house: House) -> None:
    body = chat(TEXT)
    assert house.prompts.apply(body, None).body is body
    assert house.apply(body).version == "small@1"


def test_what_cannot_be_learnt_holds_up_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def redact(text: str) -> str:
        if "poison" in text:
            raise ValueError("broken")
        return text

    monkeypatch.setattr("spanloop_collector.gateway.prompts.service._RETRY_S", 0.01)
    house.redact = redact
    house.restart()
    house.prompts.apply(chat("poison for every learner"), Snapshot(prompts=house.read(house.client)))
    assert house.apply(chat(TEXT)).version == "small@1"
    assert [version.content for version in registry.prompts(house.client)] == [TEXT]


def test_without_learning_only_what_somebody_wrote_is_known(house: House) -> None:
    registry.register_prompt(house.client, "small", TEXT.format("{{day}}"))
    registry.register_prompt(house.client, "small", "Better, {{day}}.")
    house.point(2)
    prompts = Prompts(None)
    snapshot = Snapshot(prompts=house.read(house.client))
    assert prompts.apply(chat(SENT), snapshot).body == chat("Better, 2026-03-09.")
    assert prompts.apply(chat("Something quite different"), snapshot).version is None
    assert len(registry.prompts(house.client)) == 2


def test_a_pseudonym_is_never_sent_in_place_of_the_secret(house: House) -> None:
    house.redact = lambda text: text.replace("sk-s3cret", "xx-000000")
    house.restart()
    body = chat("The key is sk-s3cret ; use it for the shop's own tool only.")
    house.apply(body)
    (stored,) = registry.prompts(house.client)
    assert "s3cret" not in stored.content
    registry.register_prompt(house.client, "small", stored.content.replace("only", "alone"))
    house.point(2)
    applied = house.apply(body)
    assert (applied.body, applied.skipped) == (body, "small@2: it has pseudonyms in place of secrets")
    registry.register_prompt(house.client, "small", "Use the tool.")
    house.point(3)
    assert house.apply(body).body == chat("Use the tool.")


def test_the_registry_is_read_again_only_when_it_has_changed(house: House) -> None:
    first = house.read(house.client)
    registry.register_model(house.client, "m", "/m")
    assert house.read(house.client) is first
    made = registry.register_prompt(house.client, "p", "one", metadata={"origin": "agent"})
    second = house.read(house.client)
    assert second is not first
    revise_prompt(house.client, made, content="two")
    third = house.read(house.client)
    assert third.versions["p", 1].content == "two"
    house.point(1, name="p")
    assert house.read(house.client).target("p") is not None


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ("You serve {{first}} {{last}} of the bakery, kindly.", "You serve Anna Maria Muster of the bakery, kindly."),
        ("You serve {{first}}{{last}} of the bakery, kindly.", "You serve Anna of the bakery, kindly."),
    ],
    ids=["blank", "nothing"],
)  # fmt: skip
def test_values_that_cannot_be_told_apart_are_put_nowhere(house: House, known: str, text: str) -> None:
    register_prompt(house.client, "small", known)
    register_prompt(house.client, "small", "Serve {{last}}, {{first}}.")
    register_prompt(house.client, "small", known.replace("kindly", "gladly"))
    register_prompt(house.client, "small", "Serve whoever comes.")
    house.point(2)
    body = chat(text)
    applied = house.apply(body)
    assert applied.body is body
    assert applied.version == "small@1"
    assert applied.skipped == "small@2: what stands in the places of small@1 cannot be told apart"
    house.point(3)  # where all of it comes out the same, nothing can go wrong
    assert house.apply(body).body == chat(text.replace("kindly", "gladly"))
    house.point(4)
    assert house.apply(body).body == chat("Serve whoever comes.")


@given(
    st.lists(st.text("ab ", max_size=4), min_size=2, max_size=5),
    st.lists(st.text("ab ", max_size=4), min_size=4, max_size=4),
)
def test_a_text_has_other_values_if_there_are_any(literals: list[str], values: list[str]) -> None:
    template = Template(tuple(literals), tuple(f"p{number}" for number in range(len(literals) - 1)))
    named = dict(zip(template.names, values, strict=False))
    text = template.render(named)
    first, other = template.match(text), template.other_values(text)
    assert first is not None
    assert template.render(first) == text
    if other is not None:
        assert (other != first, template.render(other)) == (True, text)
    if first != named:
        assert other is not None


def test_values_are_put_in_as_they_are(house: House) -> None:
    """Whatever they look like: braces, backslashes, expressions, nothing at all."""
    register_prompt(house.client, "small", "You serve {{who}}, the {{who}} of the bakery.")
    register_prompt(
        house.client,
        "small",
        r"\{{who}}: {{who}}{{who}}.",
        examples=[{"role": "user", "content": "{{who}}?"}],
    )
    house.point(2)
    for value in ("{{who}}", r"\{{who}}", r"\1\g<0>.*$", "{}{0}%s", "", "a\nb", "ü€😀"):
        applied = house.apply(chat(f"You serve {value}, the {value} of the bakery."))
        said = [{"role": "user", "content": f"{value}?"}]
        assert applied.body == chat(f"{{{{who}}}}: {value}{value}.", *said, USER)
    two = chat("You serve Anna, the Bob of the bakery.")  # one place with two values
    assert house.apply(two).body is two


def test_instructions_that_are_no_text_stay(house: House) -> None:
    register_prompt(house.client, "small", TEXT)
    register_prompt(house.client, "small", "Short.")
    house.point(2)
    listed = [{"role": "user", "content": "whatever this is"}]
    body = {"model": "small", "instructions": listed, "input": [{"role": "developer", "content": TEXT}, USER]}
    placed = house.apply(body).body
    assert placed["instructions"] == listed
    assert placed["input"] == [{"role": "developer", "content": "Short."}, USER]


def test_a_pseudonym_of_another_version_is_not_sent_either(house: House) -> None:
    """The key was changed since; rolled back to the old text, the agent would show redaction's word for it."""
    house.redact = Redactor(b"0123456789abcdef").redact_text
    house.restart()
    keys = ["AKIA" + "IOSFODNN7" + end for end in ("QWERTYU", "ASDFGHJ")]
    text = "The key of the bakery's own tool is {} ; use it for nothing else."
    house.apply(chat(text.format(keys[0])))
    house.apply(chat(text.format(keys[1]).replace("nothing", "nothing at all")))
    assert [version.id for version in registry.prompts(house.client)] == ["small@1", "small@2"]
    plain = chat("You sell bread, and have no key at all.")
    house.apply(plain)
    house.point(1)
    for body in (chat(text.format(keys[1]).replace("nothing", "nothing at all")), chat(text.format(keys[0]))):
        assert house.apply(body).body is body
    register_prompt(house.client, "small", "You sell bread, and have no key at all. Never.")
    assert "~" in registry.prompts(house.client)[0].content


def test_nobody_is_everybody(house: House) -> None:
    """The registry's word for "any service" is no name that a client may take."""
    house.apply(chat(TEXT), headers={"x-spanloop-service": "*"})
    assert [version.metadata["agent"] for version in registry.prompts(house.client)] == [""]


def test_what_a_client_calls_itself_is_recorded_in_bounds(house: House) -> None:
    tools = [{"type": "function", "function": {"name": f"t{number}"}} for number in range(3000)]
    tools.append({"type": "function", "function": {"name": "long" * 1000}})
    body = chat(TEXT, tools=tools) | {"model": "m" * 100_000}
    house.apply(body, headers={"x-spanloop-service": "s" * 8000})
    (made,) = registry.prompts(house.client)
    assert len(made.name) <= 200
    assert len(json.dumps(made.metadata)) < 10_000


def test_what_somebody_writes_is_theirs_even_where_an_agent_said_it_first(house: House) -> None:
    house.apply(chat(TEXT.format("2026-03-01")))
    (learnt,) = registry.prompts(house.client)
    written = register_prompt(house.client, "small", learnt.content)
    assert (written.id, written.learnt, written.metadata["agent"]) == ("small@1", False, "")
    for day in range(2, 6):
        house.apply(chat(TEXT.format(f"2026-03-0{day}")))
    assert registry.prompt(house.client, "small@1").content == learnt.content
    assert registry.prompt(house.client, "small@2").content == TEXT.format("{{variable_1}}")


def test_many_long_prompts_do_not_hold_up_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are split into words when something new is compared with them, in the thread."""
    threads = set[int]()
    split = words.split

    def noted(text: str) -> list[Any]:
        threads.add(threading.get_ident())
        return split(text)

    for module in ("known", "learning", "generalise"):
        monkeypatch.setattr(f"spanloop_collector.gateway.prompts.{module}.split", noted)
    versions = [PromptVersion("p", number, f"{number} {TEXT}") for number in range(1, 9)]
    prompts = Prompts(None)
    prompts.start()
    prompts.apply(chat("else"), Snapshot(prompts=Book({(one.name, one.version): one for one in versions})))
    prompts.stop()
    assert threading.get_ident() not in threads
