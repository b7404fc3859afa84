"""Clusters for the tests, ended and shown when a test fails.

QUORUMLOG_TEST_KIND=etcd runs the same tests against real etcd: that is how the harness, the histories and
their checkers are known to be right themselves. Tests of what only we promise are left out then.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from .cluster import Kind, LocalCluster

KIND = cast(Kind, os.environ.get("QUORUMLOG_TEST_KIND", "quorumlog"))

MakeCluster = Callable[..., LocalCluster]
_clusters = pytest.StashKey[list[LocalCluster]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours: of a promise that etcd does not make, or words differently")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if KIND == "quorumlog":
        return
    left_out = [item for item in items if item.get_closest_marker("ours")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        shared = [item.funcargs["shared"]] if "shared" in getattr(item, "funcargs", {}) else []
        for cluster in (*item.stash.get(_clusters, []), *shared):
            for name, text in cluster.logs().items():
                report.sections.append((f"{cluster.kind} {name} in {cluster.directory.name}", text))
    return report


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCluster]:
    """Return a function that makes a cluster of the kind under test; all are ended with the test.

    Data of a test that passed is removed: three nodes of etcd leave 400 MB behind.
    """
    made: list[LocalCluster] = []
    request.node.stash[_clusters] = made

    def make(**options: Any) -> LocalCluster:
        options.setdefault("kind", KIND)
        cluster = LocalCluster(tmp_path / f"cluster{len(made) + 1}", **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()
        cluster.remove_data()


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One cluster of three for all tests that only talk to it."""
    with LocalCluster(tmp_path_factory.mktemp("shared"), kind=KIND) as cluster:
        cluster.start()
        asyncio.run(cluster.wait_healthy())
        yield cluster
    cluster.remove_data()


@pytest.fixture
async def shared(shared_cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    """The shared cluster, held to this: whatever a test does to it, the same processes go on serving."""
    pids = [member.pid for member in shared_cluster.members]
    yield shared_cluster
    await shared_cluster.wait_healthy()
    assert [member.pid for member in shared_cluster.members] == pids
