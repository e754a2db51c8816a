"""Settings, files, runs on disk, processes and the console: what every script needs and no paper is about."""

import os

# OpenMP's threads spin while they wait for each other: fastest on an idle machine, a waste where others want the
# cores. OpenMP reads this setting when torch is loaded, which is why our own modules are imported before others'
# (section-order in pyproject.toml).
busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > os.cpu_count() + 1
os.environ.setdefault("GOMP_SPINCOUNT", "1000" if busy else "10000")
