"""Figures, export, submission, a page, n-grams, checks by other tools, benchmarks: `python -m tools.NAME`."""

import support  # noqa: F401  (before torch is loaded: see there)
