"""`python -m bench.faults`."""

import sys

from bench.faults import main

if __name__ == "__main__":
    main(sys.argv[1:])
