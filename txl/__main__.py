"""`python -m txl COMMAND`: the same as `txl COMMAND`."""

import sys

from txl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
