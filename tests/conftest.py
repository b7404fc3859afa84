"""What every test shares: how hypothesis runs, what a skip means, and who may run beside whom."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

PROCESS_TESTS = tuple(Path(__file__).parent / name for name in ("process", "lab"))

# No deadline, for a loaded machine is not a defect. Derandomized in CI: a run there is repeatable, and new
# examples are sought on developers' machines, where the finder can look at them.
hypothesis.settings.register_profile(
    "quorumlog",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("quorumlog")

# A shell that begins a command in the background has it ignore Ctrl-C, and what that starts ignores it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of real processes into one group: two clusters at once on a small machine would lose
    leaderships to each other's load, and a failure would say nothing about the code."""
    for item in items:
        if any(item.path.is_relative_to(directory) for directory in PROCESS_TESTS):
            item.add_marker(pytest.mark.process)
            item.add_marker(pytest.mark.xdist_group("process"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With CI=true a skip is a failure: a test that never runs is a claim that nobody checks.

    Only the process that reports has the terminal; the workers of pytest-xdist have none.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None or hasattr(session.config, "workerinput"):
        return
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped and exitstatus == pytest.ExitCode.OK:
        reporter.write_line("")
        reporter.write_line(f"CI=true: {skipped} skipped, listed below; a skip is a failure here.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
