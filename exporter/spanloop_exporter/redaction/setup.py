"""The redactor of this process, as the environment asks for it: the same for exporter, collector and gateway."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.redaction.settings import RedactionSettings, read_redaction, salt_of

_made: dict[tuple[RedactionSettings, bytes], Redactor] = {}


def redactor_for(folder: Path | None, environ: Mapping[str, str] | None = None) -> Redactor | None:
    """The redactor that the environment asks for; one a process for the same settings.

    Args:
        folder: the spool, or the store's folder: the salt lies there where the settings name none; None: it is this
            process's own, and the next one's pseudonyms are others.
        environ: None: this process's.

    Returns:
        None: redaction is off.

    Raises:
        RedactionError: it cannot be set up. Nothing may pass then.
    """
    settings = read_redaction(environ)
    if settings is None:
        return None
    salt = settings.salt or salt_of(folder)
    if (settings, salt) not in _made:
        _made[settings, salt] = Redactor(
            salt, disable=settings.disable, allow=settings.allow, patterns=settings.patterns
        )
    return _made[settings, salt]
