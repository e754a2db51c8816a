"""What every script needs and no paper is about: settings, files, runs on disk, processes, the console."""

import os

# Threads that wait for each other spin, by default for so long that a busy machine stands still. OpenMP reads this
# when torch is loaded; that is why our own modules are imported before others' (section-order in pyproject.toml).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
