"""`python -m txl.launch status FOLDER`"""

import sys

if __name__ == "__main__":
    from txl.launch.status import main

    sys.exit(main(sys.argv[1:]))
