"""`python evaluate.py ...` in a checkout: the same as `txl evaluate ...`."""

import sys

from txl.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
