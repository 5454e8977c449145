"""A process with an engine and nothing else, which inserts a Native file as often as it is told; see processes.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.ingest.engine import BLOCK
from spanloop_store import Engine


def main(folder: str, rows: str) -> None:
    """Reads a number a line, and answers with the seconds that so many inserts took, one after the other."""
    with Engine(f"chdb://{folder}") as engine:
        client = engine.client()
        print("ready", flush=True)
        for line in sys.stdin:
            begin = time.perf_counter()
            for _ in range(int(line)):
                client.command(
                    f"INSERT INTO otel_traces SELECT * FROM file('{Path(rows)}', 'Native') SETTINGS {BLOCK},"
                    " deduplicate_blocks_in_dependent_materialized_views = 1,"
                    f" insert_deduplication_token = '{time.time_ns()}'"
                )
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
