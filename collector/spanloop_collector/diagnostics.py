"""What our processes say about themselves on standard error, and what the libraries under them do not."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

# They warn of every failure that they then raise, and what is raised is told once, by us.
# (clickhouse-connect gives `urllib3` itself another level whenever it is imported.)
_QUIET = ("clickhouse_connect", "urllib3.connectionpool")


def log_to_stderr(level: int) -> None:
    """Sends log records from `level` upwards to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Not a request that is no HTTP, nor a body that cannot be unpacked behind an answer that did not wait for it.

    The client is told. A traceback of each would let anybody fill the log.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | RequestPayloadError)
