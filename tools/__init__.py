"""What else one may do with a run: pictures, export, benchmarks of speed. Run as `python -m tools.NAME`."""

import support  # noqa: F401  (before torch is loaded: see there)
