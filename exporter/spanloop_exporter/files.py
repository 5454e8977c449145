"""Files of log and spool: opened for this user alone, written whole, and locked against other processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError as error:  # Windows
    raise ImportError(
        "Spanloop's spool and log need flock, which this system does not have; in an agent, say"
        " OTEL_TRACES_EXPORTER=otlp and OTEL_LOGS_EXPORTER=otlp instead"
    ) from error

_PRIVATE: Final = 0o600


class OpenFile:
    """A file that we have open, which knows whether its number still means it.

    Daemons close every number they find, and the next file that anybody opens gets it: a write would then land in that.

    Args:
        path: never followed if it is a symbolic link.
        flags: of `os.open`.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self.number = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE)
        status = os.fstat(self.number)
        self._identity = (status.st_dev, status.st_ino)

    def links(self) -> int | None:
        """How many names it has on the disk; 0: somebody deleted it; None: somebody closed our number."""
        try:
            status = os.fstat(self.number)
        except OSError:
            return None
        return status.st_nlink if (status.st_dev, status.st_ino) == self._identity else None

    def in_place(self) -> bool:
        """Whether the file of this name is still this one, and open."""
        try:
            seen = self.path.lstat()
        except FileNotFoundError:
            return False
        return (seen.st_dev, seen.st_ino) == self._identity and self.links() is not None

    def close(self) -> None:
        """Closes the number, if it is still ours."""
        if self.links() is not None:
            os.close(self.number)


class FileLock:
    """Proof that no other process has a file's lock. Do not make it: `FileLock.take`."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        _held.add(file)

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """The lock, without waiting; None where another process holds it, or has just done away with the file.

        flock, and not a pid in a file: a pid may belong to another program by now, or to another container.

        Raises:
            OSError: the file cannot be made or opened, or its file system has no locks.
        """
        new = not path.exists()
        file = OpenFile(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            # Without locks, every attempt would leave a file behind.
            if new:
                path.unlink(missing_ok=True)
            file.close()
            raise
        if file.links():
            return cls(file)
        file.close()
        return None

    def in_place(self) -> bool:
        """Whether its file is still the one that others see; not so when somebody emptied the folder."""
        return self._file.in_place()

    def release(self, *, delete: bool = False) -> None:
        """Lets go.

        Args:
            delete: the file goes too; nobody needs the lock any more.
        """
        _held.discard(self._file)
        if delete:
            with contextlib.suppress(OSError):  # a folder that became read-only
                self._file.path.unlink()
        if self._file.links() is not None:
            # Said, and not left to the close: a child that was forked just now may have the number too.
            fcntl.flock(self._file.number, fcntl.LOCK_UN)
            self._file.close()


# Of this process. A forked child closes its copies: the locks stay the parent's, but would outlive it in the child.
_held: set[OpenFile] = set()


def leave_locks_to_parent() -> None:
    """For a forked child: closes its copies of its parent's locks. Python's own forks do it by themselves."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=leave_locks_to_parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, however little the system takes at a time.

    Raises:
        OSError: some of it may have been written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_private(path: Path, data: bytes) -> None:
    """Makes or overwrites a file that this user alone may read.

    Raises:
        OSError: it cannot be written; it may be there in part.
    """
    file = OpenFile(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(file.number, data)
    finally:
        file.close()
