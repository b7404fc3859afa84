"""Real members in networks that are cut for real, and what may not happen there: docs/fault-matrix.md."""
