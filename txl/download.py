"""`python -m txl.download NAME`: see txl.data.download."""

import sys

if __name__ == "__main__":
    from txl.data.download import main

    sys.exit(main())
