"""`python -m bench.fuzz`."""

import sys

from bench.fuzz import main

if __name__ == "__main__":
    main(sys.argv[1:])
