"""Settings, files, runs on disk, processes and the console: what every script needs and no paper is about."""

import os

# Threads that wait for each other spin, by default for so long that a run takes five times the CPU time on a busy
# machine; with this, a quarter more. OpenMP reads it when torch is loaded, which is why our own modules are
# imported before others' (section-order in pyproject.toml).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
