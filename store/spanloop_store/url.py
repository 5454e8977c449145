"""The store's address: one URL names the embedded engine's folder or a ClickHouse server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from spanloop_store.errors import StoreUrlError

DEFAULT_URL = "chdb:///~/.spanloop"
URL_VARIABLE = "SPANLOOP_STORE"
_DEFAULT_PORTS = {"clickhouse": 8123, "clickhouses": 8443}
_READ_OTHERWISE = re.compile("[%#]")  # what a path may hold and a URL takes for something else
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_EXAMPLES = "use chdb:///absolute/path or clickhouse://user:password@host:8123/database"
_ENCODED = f"{_EXAMPLES}; in user and password write # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B"


@dataclass(frozen=True)
class StoreUrl:
    """A parsed store URL.

    Args:
        kind: `chdb` (embedded) or `clickhouse` (a server).
        path: embedded: the store's folder, absolute; server: None.
        host: server: its name or address; embedded: empty.
        port: server: the HTTP port; embedded: 0.
        user: server: the user; embedded: empty.
        password: server: the password; embedded: empty.
        database: the database; `default` in the embedded engine.
        secure: server: TLS.
        options: further `key=value` pairs of the URL, handed to clickhouse-connect (`verify`, `ca_cert`, …).
    """

    kind: str
    path: Path | None = None
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = ""
    database: str = "default"
    secure: bool = False
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | StoreUrl | None) -> StoreUrl:
        """Reads a URL; None means `SPANLOOP_STORE`, else `chdb:///~/.spanloop`.

        Raises:
            StoreUrlError: another scheme, no path, no host, or a port that is none.
        """
        if isinstance(text, StoreUrl):
            return text
        text = (text or os.environ.get(URL_VARIABLE) or DEFAULT_URL).strip()
        # Messages quote nothing of a text that may hold a password: a special character moves it to any part.
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        if scheme not in ("chdb", *_DEFAULT_PORTS) or not rest:
            named = f"'{scheme}://' " if rest and _SCHEME.fullmatch(scheme) else "it "
            raise StoreUrlError(f"store URL: {named}is no kind of store that we know", _EXAMPLES)
        address, _, options = rest.partition("?")
        if scheme != "chdb" and ("#" in rest or ("@" in options and "@" not in address)):
            raise StoreUrlError("store URL: a '#' or '?' stands where it ends the address", _ENCODED)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            # Not `from`: what urllib says holds a piece of the password where that has a '/' in it.
            raise StoreUrlError("store URL: host and port are not HOST:PORT", _ENCODED) from None
        if scheme == "chdb":
            return cls._embedded(parts.netloc, parts.path, text)
        if not parts.hostname:
            raise StoreUrlError(f"store URL: {scheme}:// without a host", _EXAMPLES)
        return cls(
            kind="clickhouse",
            host=parts.hostname,
            port=port or _DEFAULT_PORTS[parts.scheme],
            user=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            database=unquote(parts.path.strip("/")) or "default",
            secure=parts.scheme == "clickhouses",
            options=tuple(parse_qsl(parts.query, keep_blank_values=True)),
        )

    @classmethod
    def _embedded(cls, netloc: str, path: str, text: str) -> StoreUrl:
        # A relative path would name another store in every working directory: chdb://name/… is refused.
        if netloc or not path.strip("/"):
            raise StoreUrlError("store URL: chdb:// names no absolute path", _EXAMPLES)
        if "?" in text or "#" in text:
            raise StoreUrlError(
                f"store URL: {text!r} has a '?' or '#', behind which nothing is read",
                "in a folder's name, write # as %23",
            )
        path = unquote(path)
        if "?" in path:
            raise StoreUrlError(
                f"store URL: the engine reads a '?' in the name of a folder otherwise: {path!r}", _EXAMPLES
            )
        home_relative = path.lstrip("/")
        folder = Path(home_relative).expanduser() if home_relative.startswith("~") else Path(path)
        return cls(kind="chdb", path=Path(os.path.realpath(folder)))

    @property
    def embedded(self) -> bool:
        """Whether the engine runs inside the owner's process."""
        return self.kind == "chdb"

    @property
    def folder(self) -> Path:
        """The embedded store's folder.

        Raises:
            StoreUrlError: the URL names a server, which has none.
        """
        if self.path is None:
            raise StoreUrlError(f"store {self.redacted()} is a server and has no folder", _EXAMPLES)
        return self.path

    @property
    def engine_path(self) -> Path:
        """chDB's own files."""
        return self.folder / "engine"

    @property
    def log_path(self) -> Path:
        """Write-ahead segments of raw OTLP."""
        return self.folder / "log"

    @property
    def quarantine_path(self) -> Path:
        """Bytes that could not be decoded, kept for a look."""
        return self.folder / "quarantine"

    @property
    def owner_path(self) -> Path:
        """Who serves this store, while `spanloop up` runs (mode 600: it holds a credential)."""
        return self.folder / "owner.json"

    @property
    def lock_path(self) -> Path:
        """The file whose lock the engine's process holds; its text is that process' id."""
        return self.folder / "lock"

    def redacted(self) -> str:
        """The URL for messages and logs, without its password; that of a folder can be used again."""
        if self.path is not None:
            return "chdb://" + _READ_OTHERWISE.sub(lambda found: quote(found[0]), str(self.path))
        scheme = "clickhouses" if self.secure else "clickhouse"
        host = f"[{self.host}]" if ":" in self.host else self.host
        secret = ":***" if self.password else ""
        return f"{scheme}://{self.user}{secret}@{host}:{self.port}/{self.database}"

    def __repr__(self) -> str:
        return f"StoreUrl({self.redacted()!r})"
