"""Long runs with real processes, as commands: `python -m tests.soak.NAME --help`. See docs/proof.md."""
