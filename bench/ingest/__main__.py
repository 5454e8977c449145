"""`python -m bench.ingest`."""

import sys

from bench.ingest import main

main(sys.argv[1:])
