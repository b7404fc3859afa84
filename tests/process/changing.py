"""A cluster whose membership changes: the operations of an operator who has to get each of them done.

He asks any member. What was refused he asks again. After an answer that leaves open whether it happened he
looks at the list of members, and asks again only for what is not in it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.pb import cluster_pb2, rpc_pb2

from .cluster import ClusterError, LocalCluster
from .rpc import Rpc

PAUSE_S = 0.2
"""Between two attempts."""
CALL_TIMEOUT_S = 4.0
CONNECT_S = 0.3
LIST_TIMEOUT_S = 2.0
CHANGE_S_MAX = 90.0
REMOVED_TEXT = "was removed"
REMOVED_STATUS = 1

Members = dict[int, rpc_pb2.Member]
"""By id."""


@dataclass(slots=True)
class Outcomes:
    """What became of the questions that an operator asked."""

    done: int = 0
    """Changes that were answered as made."""
    refused: Counter[str] = field(default_factory=Counter)
    """Attempts that certainly changed nothing, by what was said."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Attempts of unknown outcome, by what became of them."""


class ChangingCluster(LocalCluster):
    """`ids` has the present members, index by index. Those that were removed stay in `members`, for their
    files and their output."""

    def __init__(self, directory: Path, *, seed: int = 1, **options: Any) -> None:
        super().__init__(directory, **options)
        self.ids: dict[int, int] = {}
        self.ids_ever: set[int] = set()
        self.outcomes = Outcomes()
        self._rng = random.Random(seed)

    @property
    def present(self) -> list[int]:
        return sorted(self.ids)

    async def learn_ids(self) -> None:
        """Take note of the members that the cluster was started with."""
        listed = await self.listed()
        by_url = {member.peer_url: index for index, member in enumerate(self.members)}
        self.ids = {by_url[one.peerURLs[0]]: i for i, one in listed.items()}
        self.ids_ever |= set(listed)

    async def listed(self, timeout_s: float = 60.0) -> Members:
        """Return the members as a majority knows them."""
        deadline = time.monotonic() + timeout_s
        request = rpc_pb2.MemberListRequest(linearizable=True)
        while time.monotonic() < deadline:
            for index in self._shuffled(self.present or range(len(self.members))):
                async with Rpc(self.members[index].endpoint) as rpc:
                    if not await rpc.is_connected(CONNECT_S):
                        continue
                    try:
                        reply = await rpc.start(
                            "Cluster/MemberList",
                            request,
                            rpc_pb2.MemberListResponse.FromString,
                            LIST_TIMEOUT_S,
                        )
                    except grpc.aio.AioRpcError:
                        continue
                return {member.ID: member for member in reply.members}
            await asyncio.sleep(PAUSE_S)
        raise ClusterError(f"nobody lists the members within {timeout_s:g} s")

    # What an operator does

    async def add(self, *, is_learner: bool = False) -> int:
        """Have one more member, and return its index. It is to be started with `start`."""
        index = self.make_member(joins=True)
        url = self.members[index].peer_url
        before = set(self.ids.values())

        async def ask(rpc: Rpc) -> None:
            request = rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=is_learner)
            await rpc.start("Cluster/MemberAdd", request, rpc_pb2.MemberAddResponse.FromString)

        listed = await self._have_done("add", ask, lambda members: _with_url(members, url, before) != [])
        self._note_joined(index, listed, before)
        return index

    async def promote(self, index: int) -> None:
        async def ask(rpc: Rpc) -> None:
            request = rpc_pb2.MemberPromoteRequest(ID=self.ids[index])
            await rpc.start("Cluster/MemberPromote", request, rpc_pb2.MemberPromoteResponse.FromString)

        await self._have_done("promote", ask, lambda members: not members[self.ids[index]].isLearner)

    async def remove(self, index: int) -> None:
        """Remove a member from the configuration. Its process is another matter: see `wait_removed`."""
        member_id = self.ids[index]

        async def ask(rpc: Rpc) -> None:
            request = rpc_pb2.MemberRemoveRequest(ID=member_id)
            await rpc.start("Cluster/MemberRemove", request, rpc_pb2.MemberRemoveResponse.FromString)

        await self._have_done("remove", ask, lambda members: member_id not in members)
        self._note_gone(index)

    async def replace(self, index: int) -> int:
        """Put a new member into the place of `index`, in one change, and return its index."""
        new, old_id = self.make_member(joins=True), self.ids[index]
        url = self.members[new].peer_url
        before = set(self.ids.values())

        async def ask(rpc: Rpc) -> None:
            request = cluster_pb2.MemberReplaceRequest(ID=old_id, peerURLs=[url])
            reply = cluster_pb2.MemberReplaceResponse.FromString
            await rpc.start("Cluster/MemberReplace", request, reply, package="quorumlogpb")

        listed = await self._have_done("replace", ask, lambda members: old_id not in members)
        self._note_gone(index)
        self._note_joined(new, listed, before)
        return new

    async def wait_removed(self, index: int, timeout_s: float = 30.0) -> None:
        """A removed member ends by itself, and says why. It must be running, and reach somebody."""
        member = self.members[index]
        status = await self.wait_exit(index, timeout_s)
        assert status == REMOVED_STATUS, (
            f"{member.name} was removed, and ended by {status}\n{member.log_tail()}"
        )
        last = member.log_tail().strip().splitlines()[-1]
        assert REMOVED_TEXT in last, (
            f"{member.name} was removed, and its last words are others:\n{member.log_tail()}"
        )

    # Inside

    async def _have_done(
        self, what: str, ask: Callable[[Rpc], Awaitable[None]], is_done: Callable[[Members], bool]
    ) -> Members:
        """Ask until it is done; return the members then."""
        deadline = time.monotonic() + CHANGE_S_MAX
        open_attempts = 0
        news = "nobody could be asked"
        while time.monotonic() < deadline:
            index = self._rng.choice(self.present)
            async with Rpc(self.members[index].endpoint, timeout_s=CALL_TIMEOUT_S) as rpc:
                if not await rpc.is_connected(CONNECT_S):
                    await asyncio.sleep(0)
                    continue
                try:
                    await ask(rpc)
                except grpc.aio.AioRpcError as error:
                    applied = dict(error.trailing_metadata() or ()).get("quorumlog-applied")
                    news = f"{error.code().name}: {error.details()}"
                    if applied == "no":
                        self.outcomes.refused[f"{what}: {error.details()}"] += 1
                    else:
                        open_attempts += 1
                else:
                    self.outcomes.done += 1
                    self._settle(what, open_attempts, "repeated, and then made")
                    return await self.listed()
            if open_attempts:
                # It may be done, or be done before long; what is asked next comes after it in any case.
                listed = await self.listed()
                if is_done(listed):
                    self._settle(what, 1, "made")
                    self._settle(what, open_attempts - 1, "repeated, and then made")
                    return listed
            await asyncio.sleep(PAUSE_S)
        raise ClusterError(f"{what} was not done within {CHANGE_S_MAX:g} s: {news}")

    def _settle(self, what: str, count: int, became: str) -> None:
        if count:
            self.outcomes.unknown[f"{what}: {became}"] += count

    def _note_gone(self, index: int) -> None:
        del self.ids[index]
        self.members[index].is_gone = True

    def _note_joined(self, index: int, listed: Members, before: set[int]) -> None:
        url = self.members[index].peer_url
        found = _with_url(listed, url, before)
        assert len(found) == 1, f"{len(found)} new members have the URL {url}: {listed}"
        assert found[0] not in self.ids_ever, f"the id {found[0]:x} was used before"
        self.ids_ever.add(found[0])
        self.ids[index] = found[0]
        assert set(listed) == set(self.ids.values()), f"the members are {listed}, and not {self.ids}"

    def _shuffled(self, indices: Sequence[int]) -> list[int]:
        return self._rng.sample(list(indices), len(indices))


def _with_url(members: Members, url: str, before: set[int]) -> list[int]:
    return [i for i, member in members.items() if url in member.peerURLs and i not in before]
