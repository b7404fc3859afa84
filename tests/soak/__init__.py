"""Long trials with real processes. Each is a command of its own: `python -m tests.soak.NAME --help`."""
