"""Links between members of a cluster that runs with --enable-fault-injection, cut and healed from outside.

What a member does then is its own affair: it drops what goes that way, and its process sees no fault of the
machine's network. tests/lab cuts real networks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from quorumlog.fault_client import Question

from .cluster import ClusterError, LocalCluster

FAULT_INJECTION = ("--enable-fault-injection",)
"""The flag that the members must have."""
ASK_TIMEOUT_S = 5.0


async def partition(cluster: LocalCluster, *sides: Sequence[int]) -> None:
    """Let nothing pass between members of different sides, in both directions. All cuts before are lifted.

    By their URLs, since a name is known only once a member has published it."""
    requests = {}
    for side in sides:
        others = [cluster.members[index].peer_url for other in sides if other is not side for index in other]
        changes: list[dict[str, Any]] = [{"peers": "all", "cut": False}, {"peers": others, "cut": True}]
        requests |= {index: {"op": "set", "links": changes} for index in side}
    await _tell(cluster, requests)


async def cut_one_way(cluster: LocalCluster, senders: Sequence[int], receivers: Sequence[int]) -> None:
    """Let nothing pass from one of the first to one of the second. What goes the other way still does."""
    requests: dict[int, Any] = {}
    for direction, own, others in (("out", senders, receivers), ("in", receivers, senders)):
        urls = [cluster.members[index].peer_url for index in others]
        change = {"peers": urls, "direction": direction, "cut": True}
        requests |= {index: {"op": "set", "links": [change]} for index in own}
    await _tell(cluster, requests)


async def heal(cluster: LocalCluster) -> None:
    """Lift all cuts at the members that run."""
    await _tell(cluster, {index: {"op": "heal"} for index in cluster.running()})


async def _tell(cluster: LocalCluster, requests: dict[int, Any]) -> None:
    """Ask all at once. Raises ClusterError, AskError."""

    def ask() -> list[dict[str, Any]]:
        questions = [
            Question(str(cluster.members[index].data_dir), request, ASK_TIMEOUT_S)
            for index, request in requests.items()
        ]
        return [question.answer() for question in questions]

    for index, answer in zip(requests, await asyncio.to_thread(ask), strict=True):
        if not answer.get("ok"):
            raise ClusterError(f"{cluster.members[index].name}: {answer.get('error')}")
