"""The root of Spanloop's errors: every message says what went wrong and where, every hint what to type next."""

from __future__ import annotations


class SpanloopError(Exception):
    """A failure that the user can act on; the command line prints it without a traceback and exits 1.

    Args:
        message: what went wrong, and where (file, line, address, span id).
        hint: the next step, as a command or a setting; also what was left untouched, where that is in doubt.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message


class StoreUrlError(SpanloopError):
    """The store URL is not one that we understand."""


class StoreUnavailable(SpanloopError):
    """The store cannot be reached or opened now; trying again later may work."""


class StoreOverloaded(StoreUnavailable):
    """What was asked for needs more memory than the engine has; less at a time may do."""


class StoreLocked(StoreUnavailable):
    """Another process owns the embedded store."""


class SchemaError(SpanloopError):
    """The store's schema is newer than this program, or a migration failed."""


class RegistryError(SpanloopError):
    """A model name, version or alias that the registry does not know."""


class InvalidOtlp(SpanloopError):
    """Bytes that are no OTLP export request; nothing of them was stored."""


class SegmentRefused(SpanloopError):
    """The engine says that the bytes themselves are wrong: trying again would not help."""


class NativeError(SpanloopError):
    """Bytes of the Native format that cannot be read or served."""


class BackupError(SpanloopError):
    """A backup that cannot be made, read or restored; the store is as it was unless the message says otherwise."""


class StoreSettingError(SpanloopError):
    """A setting of the store that cannot be used as it is written."""


class AuditError(SpanloopError):
    """The audit trail cannot be written; what it was about was not done."""


class EraseError(SpanloopError):
    """Something cannot be erased; the message says what was, and running the command again goes on."""
