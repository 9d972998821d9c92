"""`python train.py ...` in a checkout: the same as `txl train ...`."""

import sys

from txl.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
