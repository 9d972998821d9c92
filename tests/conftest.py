"""One thread per process, set before torch starts: the models of the tests are too small for more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
