"""The embedded store's owner: the one process that has the engine open, and how others reach it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spanloop_store.errors import StoreUnavailable
from spanloop_store.url import StoreUrl


@dataclass(frozen=True)
class Owner:
    """What `spanloop up` leaves in `owner.json`.

    Args:
        pid: the process that has the engine open.
        started: Unix time in seconds.
        clickhouse: base URL of the ClickHouse HTTP endpoint.
        otlp_http: base URL of the OTLP/HTTP receiver.
        otlp_grpc: host:port of the OTLP/gRPC receiver.
        gateway: base URL of the gateway (without /v1).
        user: the read-write user of the endpoint.
        password: its generated password.
        reader_user: the read-only user; empty: there is none.
        reader_password: its generated password.
    """

    pid: int
    started: float
    clickhouse: str
    otlp_http: str = ""
    otlp_grpc: str = ""
    gateway: str = ""
    user: str = "spanloop"
    password: str = ""
    reader_user: str = ""
    reader_password: str = ""

    def __repr__(self) -> str:
        return f"Owner(pid={self.pid}, clickhouse={self.clickhouse!r})"


def lock_holder(url: str | StoreUrl | None) -> int | None:
    """The pid of the process that has the engine open; None where nobody has (a left-behind file counts for nothing).

    0 stands for a holder that has not written its pid yet.
    """
    try:
        descriptor = os.open(StoreUrl.parse(url).lock_path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _not_ours(url) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).strip()
            return int(text) if text.isdigit() else 0
        return None
    finally:
        os.close(descriptor)


def read_owner(url: str | StoreUrl | None = None) -> Owner | None:
    """The live owner of an embedded store; None for a server, or where no `spanloop up` runs on it.

    A file left behind by a process that died is no owner: the engine's lock is the proof of life, so a pid that
    another program has by now deceives nobody.
    """
    parsed = StoreUrl.parse(url)
    if not parsed.embedded:
        return None
    try:
        record = json.loads(parsed.owner_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    except PermissionError as error:
        raise _not_ours(parsed) from error
    if not isinstance(record, dict) or lock_holder(parsed) is None:
        return None
    known = {field.name for field in fields(Owner)}
    try:
        return Owner(**{name: value for name, value in record.items() if name in known})
    except TypeError:
        return None


def _not_ours(url: str | StoreUrl | None) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store {StoreUrl.parse(url).redacted()} belongs to another user", "run the command as that user"
    )


def write_owner(url: str | StoreUrl | None, owner: Owner) -> Path:
    """Writes `owner.json`, whole or not at all, readable by this user alone."""
    path = StoreUrl.parse(url).owner_path
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        record: dict[str, Any] = asdict(owner)
        json.dump(record, file, indent=2)
        file.write("\n")
    temporary.replace(path)
    return path


def remove_owner(url: str | StoreUrl | None) -> None:
    """Takes `owner.json` away; fine where it is gone already."""
    StoreUrl.parse(url).owner_path.unlink(missing_ok=True)
