"""`spanloop prompt`: what is listed, shown, compared, added and moved, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.helpers.stores import laid

from spanloop.main import cli
from spanloop_store import Engine, SpanloopError, audit, connect, registry

POINT = ("point", "--without-evaluation")
TEXT = "You are kind.\nToday is {{variable_1}}."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = laid(tmp_path_factory.mktemp("store") / "s")
    with Engine(url):  # open all the time: the commands would open and close it
        yield url


@pytest.fixture
def store(url: str) -> str:
    with closing(connect(url)) as client:
        for table in ("resources", "promotions"):
            client.command(f"TRUNCATE TABLE {table}")
        registry.register_prompt(client, "bot", TEXT, metadata={"origin": "agent"})
    return url


def run(store: str, *words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["prompt", *words, "--store", store], input=given)


def said(store: str, *words: str, given: str | None = None) -> str:
    result = run(store, *words, given=given)
    assert result.exit_code == 0, result.output
    return result.output


def parsed(store: str, *words: str) -> Any:
    return json.loads(said(store, *words, "--json"))


def test_a_version_is_added_moved_and_rolled_back(store: str, tmp_path: Path) -> None:
    file, shots = tmp_path / "better.txt", tmp_path / "shots.json"
    file.write_text("You are very kind.\nToday is {{variable_1}}.\n", encoding="utf-8")
    shots.write_text(json.dumps([{"role": "user", "content": "Grüezi"}]), encoding="utf-8")
    assert "bot@2 is recorded" in said(store, "add", "bot", "--file", str(file), "--examples", str(shots))
    assert "bot@2 says this already" in said(
        store, "add", "bot", "--file", str(file), "--examples", str(shots)
    )
    found = parsed(store, "show", "bot@2")
    assert (found["content"], found["parent"]) == ("You are very kind.\nToday is {{variable_1}}.", "bot@1")
    assert said(store, *POINT, "bot@2", "--why", "won", "--who", "me") == "production of bot is bot@2\n"
    listed = said(store, "list").splitlines()
    assert [line.split()[0] for line in listed] == ["bot@1", "bot@2"]
    assert [line.endswith("← production") for line in listed] == [False, True]
    assert ("agent" in listed[0], "written" in listed[1]) == (True, True)
    assert said(store, "rollback", "bot") == "production of bot is what the agent itself sends (was bot@2)\n"
    with closing(connect(store)) as client:
        assert [entry.subject for entry in audit.entries(client)] == [
            "bot (no version) as production",
            "bot@2 as production",
        ]
        assert next((row.action, row.who) for row in registry.promotions(client, kind="prompt")) == (
            "point",
            "me",
        )


def test_a_place_that_no_version_has_is_named(store: str) -> None:
    output = said(store, "add", "bot", "--file", "-", given="Hi {{customer}}, it is {{variable_1}}")
    assert "no version of bot has customer" in output
    # A new name has no agent yet: its places are its own.
    assert "no version" not in said(store, "add", "shop", "--file", "-", given="Hi {{customer}}")


def test_a_secret_that_somebody_writes_is_named(store: str) -> None:
    secret = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
    output = said(store, "add", "bot", "--file", "-", given=f"Be kind. Token {secret}")
    assert "it holds what redaction replaces elsewhere (github_token)" in output
    # What redaction has replaced is no secret any more.
    pseudonym = "~secret~cwsstpqhrtprdnqfrstkqpcb~~~~~~~~"
    assert "redaction" not in said(store, "add", "bot", "--file", "-", given=f"Be kind. Token {pseudonym}")


def test_versions_are_compared_line_by_line(store: str) -> None:
    said(store, "add", "bot", "--file", "-", given=TEXT.replace("kind", "terse"))
    lines = parsed(store, "diff", "bot@1", "bot@2")["lines"]
    assert lines[2:] == ["@@ -1,2 +1,2 @@", "-You are kind.", "+You are terse.", " Today is {{variable_1}}."]
    assert said(store, "diff", "bot@1", "bot@1") == "bot@1 and bot@1 say the same\n"


def test_show_prints_places_and_examples(store: str, tmp_path: Path) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"role": "user", "content": "Hi"}\n\n{"role": "assistant", "content": "Hello"}\n')
    said(store, "add", "bot", "--file", "-", "--examples", str(shots), given=TEXT)
    shown = run(store, "show", "bot@2")
    assert "places: variable_1" in shown.stderr
    assert "── example, assistant\nHello" in shown.stderr
    assert shown.stdout == TEXT + "\n"


def test_what_show_writes_to_a_file_is_the_version_again(store: str) -> None:
    assert "bot@1 says this already" in said(
        store, "add", "bot", "--file", "-", given=run(store, "show", "bot").stdout
    )


def test_merged_versions_are_listed_on_demand(store: str) -> None:
    from spanloop_store.prompts import revise_prompt

    with closing(connect(store)) as client:
        other = registry.register_prompt(client, "bot", "x", metadata={"origin": "agent"})
        revise_prompt(client, other, same_as="bot@1")
    assert [one["id"] for one in parsed(store, "list")] == ["bot@1"]
    assert [one["id"] for one in parsed(store, "list", "--all")] == ["bot@1", "bot@2"]
    assert said(store, "list", "--all").endswith("= bot@1\n")


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["show", "nobody"], None, "no prompt 'nobody'; prompts: bot"),
        (["point", "bot@9", "--why", "x"], None, "no version 9"),
        (["point", "bot@1", "--why", "x"], None, "no evaluation says that bot@1 is better"),
        (["rollback", "bot"], None, "no earlier version"),
        (["add", "a@b", "--file", "-"], "x", "cannot be a prompt's name"),
        (["add", "bot", "--file", "-"], " \n", "is empty"),
        (["add", "bot", "--file", "-", "--parent", "bot@7"], "x", "no version 7"),
    ],
    ids=["show", "point", "unevaluated", "rollback", "name", "empty", "parent"],
)
def test_what_is_refused_says_why_and_what_next(
    store: str, words: list[str], given: str | None, message: str
) -> None:
    result = run(store, *words, given=given)
    assert isinstance(result.exception, SpanloopError)
    assert message in result.exception.message
    assert result.exception.hint
    with closing(connect(store)) as client:
        assert len(registry.prompts(client)) == 1
        assert registry.promotions(client, kind="prompt") == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{\n{}", "line 1: not JSON"),
        (b'["a"]', "example 1 is no chat message"),
        (b"\xff", "not UTF-8 at byte 0"),
    ],
    ids=["json", "shape", "utf8"],
)
def test_examples_that_are_none_are_refused(store: str, tmp_path: Path, raw: bytes, message: str) -> None:
    file = tmp_path / "shots"
    file.write_bytes(raw)
    result = run(store, "add", "bot", "--file", "-", "--examples", str(file), given="x")
    assert isinstance(result.exception, SpanloopError)
    assert message in result.exception.message


def test_status_lists_prompts_and_where_they_point(store: str) -> None:
    said(store, "add", "bot", "--file", "-", given="You are terse.")
    said(store, *POINT, "bot@2", "--why", "won")
    said(store, "add", "shop", "--file", "-", given="You sell.")
    with closing(connect(store)) as client:
        client.command("TRUNCATE TABLE otel_traces")
        client.command(
            "INSERT INTO otel_traces (Timestamp, SpanId, ServiceName, SpanAttributes)"
            " SELECT now() - INTERVAL arrayElement([1, 2, 30], number + 1) HOUR, toString(number), 'spanloop-gateway',"
            " map('spanloop.prompt.version', 'bot@2') FROM numbers(3)"
        )
    found = json.loads(CliRunner().invoke(cli, ["status", "--store", store, "--json"]).output)["prompts"]
    assert found == [
        {"name": "bot", "versions": [1, 2], "production": 2, "candidate": None, "calls_of_a_day": 2},
        {"name": "shop", "versions": [1], "production": None, "candidate": None, "calls_of_a_day": 0},
    ]
    output = CliRunner().invoke(cli, ["status", "--store", store]).output
    assert "  bot  2 versions, the newest bot@2; 2 calls in 24 hours; production: bot@2\n" in output
    assert (
        "  shop  1 version, the newest shop@1; 0 calls in 24 hours; production: what the agent sends\n"
        in output
    )
