"""Pictures of a run, export, checks against other tools, benchmarks of speed: `python -m tools.NAME`."""

import support  # noqa: F401  (before torch is loaded: see there)
