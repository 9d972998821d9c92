"""`python -m txl.download NAME`, which is `txl download NAME`."""

import sys

if __name__ == "__main__":
    from txl.data.download import main

    sys.exit(main())
