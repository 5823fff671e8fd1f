"""For all tests: one thread for each process, since several run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
