"""A backup on disk: a folder or one tar file, with pieces of compressed rows and a manifest that is written last."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from spanloop_store.disk import sync_folder
from spanloop_store.errors import BackupError

# Comes with clickhouse-connect.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = "spanloop-backup/1"
MANIFEST: Final = "manifest.json"
_LEVEL: Final = 3
_CHUNK: Final = 1 << 20
_PART: Final = ".part"
_FILE: Final = re.compile(r"[a-z_]+/[\w-]+\.native\.zst")


@dataclass(frozen=True)
class Piece:
    """One file of rows, in the Native format, compressed.

    Args:
        file: its name within the backup.
        rows: rows in it.
        bytes: its size, compressed.
        sha256: of its bytes, in hex.
    """

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class TableBackup:
    """One table: `hash` is the sum of its rows' hashes, whatever their order (see `backup.row_hash`)."""

    columns: dict[str, str]
    rows: int = 0
    hash: int = 0
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Manifest:
    """What a backup holds; there is none until it is whole."""

    created: str
    store: str
    schema_version: int
    program: str
    tables: dict[str, TableBackup] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())

    @property
    def bytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.bytes for table in self.tables.values() for piece in table.pieces)

    def to_json(self) -> str:
        """The manifest's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """Reads a manifest.

        Raises:
            BackupError: it is none, or of a later program.
        """
        try:
            record: dict[str, Any] = json.loads(text)
            if record["format"] != FORMAT:
                raise BackupError(
                    f"{where} is a backup of format {record['format']!r}, this program reads {FORMAT}",
                    "upgrade the program: pip install --upgrade spanloop",
                )
            tables = {
                name: TableBackup(
                    {str(column): str(kind) for column, kind in table["columns"].items()},
                    int(table["rows"]),
                    int(table["hash"]),
                    [
                        Piece(_file_name(piece["file"]), piece["rows"], piece["bytes"], piece["sha256"])
                        for piece in table["pieces"]
                    ],
                )
                for name, table in record["tables"].items()
            }
            return cls(
                record["created"], record["store"], int(record["schema_version"]), record["program"], tables
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(
                f"the manifest of {where} cannot be read: {error}", "is it a backup?"
            ) from error


def _file_name(name: str) -> str:
    """A piece's name as a manifest has it, if it lies within the backup.

    Raises:
        ValueError: it may not.
    """
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no file of rows")
    return name


class Writer:
    """Writes a backup beside its final place, which it takes when it is whole.

    Args:
        target: a folder, or a file whose name ends in `.tar`; it must not exist.

    Raises:
        BackupError: something lies there, another process writes it now, or it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(target.name + _PART)
        if target.exists():
            raise BackupError(f"{target} exists; it is untouched", "name another --to, or move it away")
        self._tar = target.suffix == ".tar"
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._part.exists():
                # Left by a run that was killed, unless somebody holds it.
                os.close(self._hold())
                _remove(self._part)
            if self._tar:
                self._file: IO[bytes] = self._part.open("xb")
                self._part.chmod(0o600)
            else:
                self._part.mkdir(mode=0o700)
            self._held = self._hold()

    def _hold(self) -> int:
        descriptor = os.open(self._part, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BackupError(
                f"another backup writes {self._target} now; it is untouched",
                "wait for it, or name another --to",
            ) from error
        return descriptor

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[PieceWriter]:
        """A file to write rows to; close it before the next one is begun."""
        with _told(self._target):
            if self._tar:
                with self._member(name) as file:
                    writer = PieceWriter(file, name)
                    yield writer
                    writer.finish()
            else:
                path = self._part / name
                path.parent.mkdir(exist_ok=True)
                with path.open("xb") as file:
                    writer = PieceWriter(file, name)
                    yield writer
                    writer.finish()
                    _sync(file)

    @contextlib.contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        """A tar member whose size is known only when it is written: its header is written a second time then."""
        file = self._file
        header = file.tell()
        file.write(bytes(tarfile.BLOCKSIZE))
        yield file
        end = file.tell()
        file.write(bytes(-end % tarfile.BLOCKSIZE))
        info = tarfile.TarInfo(name)
        info.size, info.mode = end - header - tarfile.BLOCKSIZE, 0o600
        after = file.tell()
        file.seek(header)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(after)

    def commit(self, manifest: Manifest) -> None:
        """Writes the manifest and gives the backup its name."""
        text = manifest.to_json().encode()
        with _told(self._target):
            if self._tar:
                with self._member(MANIFEST) as file:
                    file.write(text)
                self._file.write(bytes(2 * tarfile.BLOCKSIZE))
                _sync(self._file)
                self._file.close()
            else:
                with (self._part / MANIFEST).open("xb") as file:
                    file.write(text)
                    _sync(file)
                for folder in (*filter(Path.is_dir, self._part.iterdir()), self._part):
                    sync_folder(folder)
            self._part.replace(self._target)
            sync_folder(self._target.parent)
        os.close(self._held)

    def abort(self) -> None:
        """Takes away what was written."""
        if self._tar:
            self._file.close()
        _remove(self._part)
        os.close(self._held)


class PieceWriter:
    """Compresses rows into one file and counts them."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._compressor = zstd.ZstdCompressor(_LEVEL)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._rows = 0

    def write(self, data: bytes, rows: int) -> None:
        """Adds whole blocks."""
        self._rows += rows
        self._put(self._compressor.compress(data))

    def finish(self) -> None:
        """Ends the compressed stream."""
        self._put(self._compressor.flush())

    def piece(self) -> Piece:
        """What was written; after `finish`."""
        return Piece(self._name, self._rows, self._bytes, self._digest.hexdigest())

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)


class Reader:
    """Reads a backup, folder or tar file.

    Raises:
        BackupError: there is none, or it is not whole.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._tar: tarfile.TarFile | None = None
        if not source.exists():
            raise BackupError(f"there is no backup at {source}", "check --from")
        with _told(source):
            if source.is_dir():
                path = source / MANIFEST
                data = path.read_bytes() if path.exists() else b""
            else:
                self._tar = tarfile.open(source, "r:")  # noqa: SIM115  # closed by close()
                data = self._open_member(MANIFEST).read() if MANIFEST in self._tar.getnames() else b""
        if not data:
            self.close()
            raise BackupError(
                f"{source} has no {MANIFEST}", "it is no backup, or one that was never finished"
            )
        try:
            self.manifest = Manifest.from_json(data.decode(errors="replace"), source)
        except BackupError:
            self.close()
            raise

    def open(self, piece: Piece) -> IO[bytes]:
        """The compressed bytes of a piece.

        Raises:
            BackupError: it is not there.
        """
        with _told(self.source):
            if self._tar is not None:
                return self._open_member(piece.file)
            return (self.source / piece.file).open("rb")

    def verify(self, progress: Callable[[str], None] = lambda _line: None) -> None:
        """Reads every piece and compares size and hash with the manifest.

        Raises:
            BackupError: one is missing or was changed.
        """
        for name, table in self.manifest.tables.items():
            if table.rows:
                progress(f"checking {name}: {table.rows:,} rows")
            for piece in table.pieces:
                digest, size = hashlib.sha256(), 0
                with self.open(piece) as file:
                    while data := file.read(_CHUNK):
                        digest.update(data)
                        size += len(data)
                if (size, digest.hexdigest()) != (piece.bytes, piece.sha256):
                    raise BackupError(
                        f"{piece.file} of {self.source} is not what was written: {size} bytes, {piece.bytes} expected",
                        "nothing was restored; use another copy of the backup",
                    )

    def close(self) -> None:
        """Lets go of the tar file."""
        if self._tar is not None:
            self._tar.close()

    def _open_member(self, name: str) -> IO[bytes]:
        assert self._tar is not None
        try:
            file = self._tar.extractfile(name)
        except KeyError:
            file = None
        if file is None:
            raise BackupError(f"{self.source} has no {name}", "use another copy of the backup")
        return file


def unpacked(file: IO[bytes]) -> Generator[bytes, None, None]:
    """The rows of a piece, in chunks."""
    with zstd.ZstdFile(file) as stream:
        while data := stream.read(_CHUNK):
            yield data


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the disk and the tar format say, as one message."""
    try:
        yield
    except (OSError, tarfile.TarError, zstd.ZstdError) as error:
        raise BackupError(f"{path}: {error}", "check the path, its rights and the space there") from error


def _sync(file: IO[bytes]) -> None:
    file.flush()
    if isinstance(file, io.IOBase):
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
