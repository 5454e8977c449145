"""The documents name what exists: files, headings, commands, options, variables, settings."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from spanloop.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(
            page
            for folder in ("examples", "dashboards", "deploy", "bench")
            for page in (ROOT / folder).rglob("*.md")
        ),
    ]
)
CONFIGURATION = ROOT / "docs" / "configuration.md"
PACKAGES = ("store", "exporter", "collector", "trainer", "cli")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> Iterator[str]:
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match["language"] == language:
            yield re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)


@cache
def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


def parts(of: click.Command) -> list[click.Command]:
    """A group's commands; of any other command, itself."""
    return list(of.commands.values()) if isinstance(of, click.Group) else [of]


def parameters(of: click.Command) -> list[click.Parameter]:
    return [parameter for part in parts(of) for parameter in part.params]


def options(of: click.Command) -> set[str]:
    given = [*of.params, *parameters(of)]
    names = {name for p in given if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)}
    return names | {"--help", "-h"}


@cache
def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_relative_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: no heading for {target}"


def shell_commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a snippet, as words; assignments in front are dropped."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;|&()]+", word):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


@each_page
def test_bash_snippets_use_commands_and_options_that_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in blocks(page, "bash"):
        for words in shell_commands(script):
            if words[0] == "make":
                targets = [word for word in words[1:] if "=" not in word]
                assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), words
            if Path(words[0]).name != "spanloop":
                continue
            if words[1].startswith("-"):
                assert words[1] in options(cli) | {"--version"}, words
                continue
            assert words[1] in COMMANDS, words
            # What follows `--` is another program's.
            own = words[2 : words.index("--")] if "--" in words else words[2:]
            of = command(words[1])
            if isinstance(of, click.Group) and own and not own[0].startswith("-"):
                assert own[0] in of.commands, words
                of = of.commands[own[0]]
            known = options(of)
            for word in own:
                if word.startswith("-") and len(word) > 1:
                    assert word.partition("=")[0] in known, f"spanloop {words[1]} has no {word}"


@each_page
def test_python_and_toml_snippets_are_valid(page: Path) -> None:
    from spanloop_trainer.config import Config

    for script in blocks(page, "python"):
        compile(script, str(page), "exec")
    for text in blocks(page, "toml"):
        Config.model_validate(tomllib.loads(text))


def section(heading: str) -> str:
    text = CONFIGURATION.read_text(encoding="utf-8")
    match = re.search(rf"^### `{re.escape(heading)}`\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/configuration.md has no heading ### `{heading}`"
    return match[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_its_options_is_described(name: str) -> None:
    text = section(f"spanloop {name}")
    described = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", text))
    for part in parts(command(name)):
        assert not isinstance(command(name), click.Group) or f"spanloop {name} {part.name}" in text, part.name
    for parameter in parameters(command(name)):
        if isinstance(parameter, click.Option):
            assert set(parameter.opts) | set(parameter.secondary_opts) <= described, (
                f"spanloop {name}: {parameter.opts}"
            )
        else:
            assert parameter.make_metavar(click.Context(command(name))).strip("[]….") in text, parameter.name
    assert described - {"--help", "-h"} <= options(command(name)), f"spanloop {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_and_what_its_options_do(name: str) -> None:
    for part in (command(name), *parts(command(name))):
        assert "Example" in (part.epilog or ""), part.name
    for parameter in parameters(command(name)):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"spanloop {name} {parameter.opts[0]}"


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [t for t in (field.annotation, *typing.get_args(field.annotation)) if _is_model(t)]
        if inner:
            yield from settings(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}"


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_every_setting_is_described() -> None:
    config = importlib.import_module("spanloop_trainer.config").Config
    expected = set(settings(config))
    assert len(expected) >= 6
    described = set(re.findall(r"^\| `([a-z_.]+)` \|", section("spanloop.toml"), re.MULTILINE))
    assert described == expected


def test_every_variable_of_ours_is_described() -> None:
    described = set(
        re.findall(r"^\| `(SPANLOOP_\w+)` \|", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE)
    )
    used: set[str] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            used |= set(re.findall(r"[\"'](SPANLOOP_[A-Z_]+)[\"']", file.read_text(encoding="utf-8")))
    assert described == used


def test_every_default_for_the_agents_sdk_is_described() -> None:
    defaults = importlib.import_module("spanloop_exporter.defaults")
    text = CONFIGURATION.read_text(encoding="utf-8")
    for table in (defaults.SDK_DEFAULTS, defaults.INSTRUMENTOR_DEFAULTS):
        for name, value in table.items():
            assert re.search(rf"^\| `{name}` \| `{re.escape(value)}` \|", text, re.MULTILINE), name


def test_training_settings_have_options() -> None:
    """A setting of a training run that no option reaches is one that nobody can change."""
    from spanloop_trainer.settings import Settings

    known = options(command("train"))
    for field in dataclasses.fields(Settings):
        assert "--" + field.name.replace("_", "-") in known, field.name


def test_defaults_of_the_algorithms_are_described() -> None:
    from spanloop_trainer.settings import POLICY_GRADIENT, Settings

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.partition("## Defaults")[2].partition("## ")[0]
    described: dict[tuple[str, bool], list[str]] = {}
    for line in re.findall(r"^\|.*\|$", table, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]):
            described[name, "fresh" in cells[0]] = cells[1:6]
    for name, fresh in (("sft", False), ("sft", True), *((name, False) for name in POLICY_GRADIENT)):
        found = Settings().resolved(name, fresh_weights=fresh)
        numbers: list[float] = [found.learning_rate, found.epochs, found.batch_size]
        if name in POLICY_GRADIENT:
            numbers += [found.kl_beta, found.clip_epsilon]
        assert [float(cell) for cell in described[name, fresh] if cell != "–"] == numbers, name


def test_index_links_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "index.md" or f"({page.relative_to(ROOT / 'docs')})" in text, page.name


def test_changelog_lines_are_short() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for line in re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE):
        assert len(line.split()) <= 25, line


@each_page
def test_lines_name_no_path_of_a_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(?:home|root|work|Users)/", page.read_text(encoding="utf-8"))
