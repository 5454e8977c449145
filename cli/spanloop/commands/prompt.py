"""`spanloop prompt …`: the system prompts that the gateway knows, new versions of them, and which one goes out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanloop.options import echo_json, example, json_option, store_option

if TYPE_CHECKING:
    from spanloop_store.pointers import Promotion
    from spanloop_store.prompts import PromptVersion

_PREVIEW_CHARS = 60
_alias_option = click.option(
    "--alias",
    type=click.Choice(["production", "candidate"]),
    default="production",
    show_default=True,
    help="The alias to move; candidate is for the gateway's canary sessions.",
)
_who_option = click.option("--who", help="Who decides.  [default: the user of this process]")


@click.group(
    epilog=example("""
        spanloop prompt list
        spanloop prompt add support-bot --file better.txt
        spanloop prompt point support-bot@2 --alias candidate --why "shorter"
        spanloop prompt point support-bot@2 --without-evaluation --why "shorter answers won the trial"
    """)
)
def command() -> None:
    """Look at the system prompts of agents, write better ones, and have the gateway send them."""


@command.command("list", epilog=example("spanloop prompt list --all --json"))
@click.option(
    "--all", "every", is_flag=True, help="Versions too that turned out to be the same as another one."
)
@store_option
@json_option
def list_(every: bool, store: str, as_json: bool) -> None:
    """Show all prompts with their versions and aliases."""
    from contextlib import closing

    from spanloop_store import connect, registry

    with closing(connect(store, make=False)) as client:
        versions = [one for one in registry.prompts(client) if every or not one.same_as]
        pointers: dict[str, list[str]] = {}
        for alias in registry.aliases(client, "prompt"):
            pointers.setdefault(f"{alias.name}@{alias.version}", []).append(alias.alias)
    if as_json:
        echo_json([{**_plain(one), "aliases": pointers.get(one.id, [])} for one in versions])
        return
    if not versions:
        click.echo("no prompts yet: the gateway learns them from the calls that it serves")
    for one in versions:
        said = " ".join(one.content.split())
        click.echo(
            f"{one.id:24}  {one.created:%Y-%m-%d %H:%M}  {'agent' if one.learnt else 'written':7}"
            f"  {said[:_PREVIEW_CHARS]}{'…' if len(said) > _PREVIEW_CHARS else ''}"
            + (f"  ← {', '.join(pointers[one.id])}" if one.id in pointers else "")
            + (f"  = {one.same_as}" if one.same_as else "")
        )


@command.command(
    epilog=example("""
        spanloop prompt show support-bot@1
        spanloop prompt show support-bot > better.txt
    """)
)
@click.argument("ref", metavar="NAME[@VERSION]")
@store_option
@json_option
def show(ref: str, store: str, as_json: bool) -> None:
    """Print one version. Without a version: production, else the newest.

    Standard output has the text alone, for a file that `add` takes; origin, places and examples go to standard error.
    """
    found = _versions(store, ref)[0]
    if as_json:
        echo_json(_plain(found))
        return
    click.secho(found.id, bold=True, err=True)
    origin = "learnt from its agent" if found.learnt else "written here"
    click.echo(
        f"  {origin}, {found.created:%Y-%m-%d %H:%M} UTC"
        + (f", from {found.parent}" if found.parent else ""),
        err=True,
    )
    if found.same_as:
        click.echo(f"  the same as {found.same_as}", err=True)
    if places := dict.fromkeys(found.template.names):
        click.echo(f"  places: {', '.join(places)}", err=True)
    click.echo(found.content)
    for message in found.examples:
        click.secho(f"── example, {message['role']}", dim=True, err=True)
        said = message.get("content")
        click.echo(said if isinstance(said, str) else json.dumps(dict(message), ensure_ascii=False), err=True)


@command.command(epilog=example("spanloop prompt diff support-bot@1 support-bot@2"))
@click.argument("one", metavar="NAME@VERSION")
@click.argument("other", metavar="NAME@VERSION")
@store_option
@json_option
def diff(one: str, other: str, store: str, as_json: bool) -> None:
    """Compare two versions line by line."""
    from difflib import unified_diff

    before, after = _versions(store, one, other)
    lines = list(
        unified_diff(_lines(before), _lines(after), before.id, after.id, lineterm="", n=1_000_000)
        if _lines(before) != _lines(after)
        else ()
    )
    if as_json:
        echo_json({"from": before.id, "to": after.id, "lines": lines})
        return
    for line in lines or [f"{before.id} and {after.id} say the same"]:
        click.secho(line, fg={"+": "green", "-": "red"}.get(line[:1]))


@command.command(
    epilog=example("""
        spanloop prompt add support-bot --file better.txt
        spanloop prompt add support-bot --file better.txt --examples shots.jsonl --parent support-bot@1
    """)
)
@click.argument("name", metavar="NAME")
@click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The text; {{name}} takes what the agent's own text has in that place. -: standard input.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Messages that go behind it: a JSON list, or one message a line.",
)
@click.option(
    "--parent", metavar="NAME@VERSION", help="The version that it was made from.  [default: the newest]"
)
@store_option
@json_option
def add(name: str, path: Path, examples: Path | None, parent: str | None, store: str, as_json: bool) -> None:
    """Record a text as the next version of a prompt. It goes out once an alias points at it."""
    from contextlib import closing

    from spanloop_store import connect, registry

    content = _read(path).removesuffix("\n")  # which editors add
    shots = _examples(examples) if examples else []
    with closing(connect(store, make=False)) as client:
        known = registry.prompts(client, name)
        live = [one for one in known if not one.same_as]
        if parent is not None:
            parent = registry.prompt(client, parent).id
        made = registry.register_prompt(
            client, name, content, parent=parent or (live[-1].id if live else ""), examples=shots
        )
    places = {place for one in live for place in one.template.names}
    missing = made.template.missing(places) if live else []
    held = _held(content, shots)
    if as_json:
        echo_json({**_plain(made), "unknown_places": missing, "held": held})
        return
    click.echo(
        f"{made.id} is recorded"
        if made.id not in {one.id for one in known}
        else f"{made.id} says this already"
    )
    if missing:
        click.secho(
            f"  no version of {name} has {', '.join(missing)}: calls that give no such value keep the agent's own text",
            fg="yellow",
        )
    if held:
        click.secho(
            f"  it holds what redaction replaces elsewhere ({', '.join(held)}): it is stored and sent as it was written",
            fg="yellow",
        )
    click.echo(f'next:  spanloop prompt point {made.id} --alias candidate --why "…"')


@command.command(
    short_help="Have the gateway send this version.",
    epilog=example("""
        spanloop prompt point support-bot@2 --alias candidate --why "shorter answers"
        spanloop prompt point support-bot@2 --without-evaluation --why "won the trial"
    """),
)
@click.argument("ref", metavar="NAME@VERSION")
@_alias_option
@click.option("--why", required=True, help="A sentence for the audit trail.")
@click.option(
    "--without-evaluation",
    is_flag=True,
    help="Move production although no evaluation of prompts stands behind it: you have judged the version yourself.",
)
@_who_option
@store_option
@json_option
def point(
    ref: str, alias: str, why: str, without_evaluation: bool, who: str | None, store: str, as_json: bool
) -> None:
    """Have the gateway send this version in place of what the agent sends, from its next call on.

    The gate of `spanloop promote` judges models, not prompts. Production therefore moves only with --without-evaluation;
    the audit trail has it as `point`, with who and why.
    """
    from contextlib import closing

    from spanloop_store import connect, registry
    from spanloop_store.audit import this_user
    from spanloop_store.errors import RegistryError

    with closing(connect(store, make=False)) as client:
        version = registry.prompt(client, ref)
        if alias == registry.PRODUCTION and not without_evaluation:
            raise RegistryError(
                f"no evaluation says that {version.id} is better, and production did not move",
                f"spanloop prompt point {version.id} --alias candidate --why … tries it on the canary's sessions;"
                " --without-evaluation moves production on your own judgement",
            )
        moved = registry.point_alias(
            client,
            version.name,
            alias,
            version.version,
            action="point",
            kind="prompt",
            who=who or this_user(),
            why=why,
        )
    _moved(moved, as_json)


@command.command(
    short_help="Point an alias to where it pointed before.",
    epilog=example('spanloop prompt rollback support-bot --why "answers got too short"'),
)
@click.argument("name", metavar="NAME")
@_alias_option
@click.option("--why", default="", help="A sentence for the audit trail.")
@_who_option
@store_option
@json_option
def rollback(name: str, alias: str, why: str, who: str | None, store: str, as_json: bool) -> None:
    """Point an alias to where it pointed before; the first time it was moved, to nowhere: the agent's own text goes out."""
    from contextlib import closing

    from spanloop_store import connect, registry
    from spanloop_store.audit import this_user

    with closing(connect(store, make=False)) as client:
        moved = registry.roll_back(client, name, alias, kind="prompt", who=who or this_user(), why=why)
    _moved(moved, as_json)


def _versions(store: str, *references: str) -> list[PromptVersion]:
    from contextlib import closing

    from spanloop_store import connect, registry

    with closing(connect(store, make=False)) as client:
        return [registry.prompt(client, reference) for reference in references]


def _moved(moved: Promotion, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        echo_json(asdict(moved))
        return
    before = f" (was {moved.name}@{moved.previous_version})" if moved.previous_version else ""
    now = f"{moved.name}@{moved.version}" if moved.version else "what the agent itself sends"
    click.echo(f"{moved.alias} of {moved.name} is {now}{before}")


def _plain(version: PromptVersion) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(version), "id": version.id, "places": list(dict.fromkeys(version.template.names))}


def _lines(version: PromptVersion) -> list[str]:
    shots = [json.dumps(dict(message), ensure_ascii=False) for message in version.examples]
    return [*version.content.splitlines(), *(f"example: {shot}" for shot in shots)]


def _read(path: Path) -> str:
    from spanloop_store.errors import RegistryError

    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RegistryError(f"{path} is not UTF-8 at byte {error.start}", "save it as UTF-8 text") from error


def _held(content: str, shots: list[Any]) -> list[str]:
    """Kinds of secrets and personal data in a text that somebody wrote: they mean it, or did not notice."""
    from spanloop_exporter.redaction.setup import redactor_for

    redactor = redactor_for(None)
    if redactor is None:
        return []
    texts = [content, *(json.dumps(shot, ensure_ascii=False) for shot in shots)]
    return sorted({found.kind for text in texts for found in redactor.find(text.encode("utf-8", "replace"))})


def _examples(path: Path) -> list[Any]:
    from spanloop_store.errors import RegistryError

    text = _read(path)
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass  # not one document: a message a line
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise RegistryError(
                f"{path}, line {number}: not JSON: {error}", 'write {"role": "user", "content": "…"}'
            ) from error
    return found
