"""Settings, files, runs on disk, processes and the console: what every script needs and no paper is about."""

import os

# Threads that wait for each other spin, by default for so long that a busy machine stands still. OpenMP reads this
# when torch is loaded, which is why our own modules are imported before others' (section-order in pyproject.toml).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
