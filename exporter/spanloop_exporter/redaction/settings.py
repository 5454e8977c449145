"""What the environment says about redaction, and the salt: read here for exporter, collector, gateway and plugin alike."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spanloop_exporter.errors import RedactionError
from spanloop_exporter.files import write_private

log = logging.getLogger(__name__)

VARIABLE: Final = "SPANLOOP_REDACTION"
SALT_VARIABLE: Final = "SPANLOOP_REDACTION_SALT"
SALT_FILE: Final = "redaction.salt"
_LEAST_SALT: Final = 16  # bytes
_SALT_BYTES: Final = 32
_SPOOL: Final = "spool"


@dataclass(frozen=True)
class RedactionSettings:
    """Which kinds are redacted, and how.

    Args:
        salt: of the pseudonyms; None: the one that lies beside the spool or store.
        disable: kinds or groups of kinds that are left as they are.
        allow: values that are left as they are; `*` stands for anything.
        patterns: the user's own, (name, regular expression).
    """

    salt: bytes | None = None
    disable: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()


def read_redaction(environ: Mapping[str, str] | None = None) -> RedactionSettings | None:
    """`SPANLOOP_REDACTION`: `on` (the default), `off`, or the path of a TOML file with a table `[redaction]`.

    Returns:
        None: it is off.

    Raises:
        RedactionError: the file cannot be read, or says what makes no sense.
    """
    environ = os.environ if environ is None else environ
    said = environ.get(VARIABLE, "").strip()
    own = environ.get(SALT_VARIABLE, "")
    salt = _salt(own, SALT_VARIABLE) if own else None
    if said.lower() in ("off", "0", "false", "no"):
        return None
    if said.lower() in ("", "on", "1", "true", "yes"):
        return RedactionSettings(salt)
    table = _table(Path(said).expanduser())
    return RedactionSettings(
        salt or (_salt(_text(table["salt"], "salt", said), f"{said}: salt") if "salt" in table else None),
        tuple(_texts(table.get("disable", []), "disable", said)),
        tuple(_texts(table.get("allow", []), "allow", said)),
        tuple(_pattern(entry, said) for entry in _list(table.get("patterns", []), "patterns", said)),
    )


def salt_path(folder: Path) -> Path:
    """Where the salt of a spool or store lies: in the folder; beside it where it is called `spool`.

    So an agent and a collector with the default folders have one salt, `~/.spanloop/redaction.salt`.
    """
    return (folder.parent if folder.name == _SPOOL else folder) / SALT_FILE


_process_salt: Final = secrets.token_bytes(_SALT_BYTES)
_told: set[Path | None] = set()


def salt_of(folder: Path | None) -> bytes:
    """The salt that lies with a folder; made at first. Where none can be kept, this process's own.

    Raises:
        RedactionError: what lies there is none.
    """
    if folder is None:
        return _process_salt
    path = salt_path(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read_salt(path)
        _make_salt(path)
        return _read_salt(path)
    except OSError as error:
        if path not in _told:
            _told.add(path)
            log.warning(
                "the salt of redaction cannot be kept in %s (%s): this process has its own, and its pseudonyms differ from"
                " others'; %s sets one for all",
                path,
                error.strerror or error,
                SALT_VARIABLE,
            )
        return _process_salt


def _read_salt(path: Path) -> bytes:
    text = path.read_text("ascii", "replace").strip()
    return _salt(text, str(path))


def _make_salt(path: Path) -> None:
    """Writes one whole, for this user alone; whoever comes first has made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{SALT_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write_private(whole, f"{secrets.token_hex(_SALT_BYTES)}\n".encode())
        with contextlib.suppress(FileExistsError):
            os.link(whole, path)
    finally:
        whole.unlink(missing_ok=True)


def _salt(text: str, where: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) < _LEAST_SALT:
        raise RedactionError(
            f"{where} holds a salt of {len(data)} bytes: whoever guesses it can test guesses of every value",
            f"set {SALT_VARIABLE} to {_LEAST_SALT} characters or more: openssl rand -hex 32",
        )
    return data


def _table(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RedactionError(
            f"{VARIABLE}={path}: the file cannot be read: {error.strerror or error}",
            f"{VARIABLE} is on, off, or the path of a TOML file with a table [redaction]",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RedactionError(f"{path} is no TOML: {error}", "mend the file") from error
    table = document.get("redaction", {})
    known = {"salt", "disable", "allow", "patterns"}
    if not isinstance(table, dict) or set(table) - known:
        names = ", ".join(sorted(set(table) - known)) if isinstance(table, dict) else "redaction"
        raise RedactionError(
            f"{path}: [redaction] has no setting {names}",
            f"it has {', '.join(sorted(known))}: docs/redaction.md",
        )
    return table


def _list(value: Any, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RedactionError(f"{where}: redaction.{name} is no list", "docs/redaction.md has an example")
    return value


def _texts(value: Any, name: str, where: str) -> list[str]:
    return [_text(item, name, where) for item in _list(value, name, where)]


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise RedactionError(f"{where}: redaction.{name} is no text", "docs/redaction.md has an example")
    return value


def _pattern(entry: Any, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict) or set(entry) != {"name", "regex"}:
        raise RedactionError(
            f"{where}: each of redaction.patterns has a name and a regex, and nothing else",
            '[[redaction.patterns]] name = "customer" regex = "C-[0-9]{8}"',
        )
    return _text(entry["name"], "patterns.name", where), _text(entry["regex"], "patterns.regex", where)
