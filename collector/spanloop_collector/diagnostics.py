"""What our processes say about themselves on standard error, and what the libraries under them do not."""

from __future__ import annotations

import logging

# They warn of every failure that they then raise, and what is raised is told once, by us.
# (clickhouse-connect gives `urllib3` itself another level whenever it is imported.)
_QUIET = ("clickhouse_connect", "urllib3.connectionpool")


def log_to_stderr(level: int) -> None:
    """Sends log records from `level` upwards to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
