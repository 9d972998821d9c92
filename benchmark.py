"""`python benchmark.py ...` in a checkout: the same as `txl benchmark ...`."""

import sys

from txl.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
