"""Settings, files, runs on disk, processes and the console: what every script needs and no paper is about."""

import os

# Threads that wait for each other spin, which is quickest; where others want the cores, it only takes CPU time.
# OpenMP reads this when torch is loaded, which is why our own modules are imported before others' (section-order
# in pyproject.toml).
busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > os.cpu_count() + 1
os.environ.setdefault("GOMP_SPINCOUNT", "1000" if busy else "10000")
