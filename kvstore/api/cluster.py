"""etcdserverpb.Cluster and quorumlogpb.Cluster: the members, and how they change.

A change is proposed by whichever member is asked; whether it can be made only the leader knows, and says so
by a refusal. What the leader cannot know, since to it URLs are only bytes, is checked here beforehand.

Also here: how a member tells the others where clients reach it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias

from kvstore.api.ack_metadata import check_no_wish
from kvstore.api.call import ApiContext, Call, Method
from kvstore.commands import CommandKind, encode_command
from kvstore.errors import (
    MEMBER_BAD_URLS,
    MEMBER_NOT_FOUND,
    MEMBER_NOT_LEARNER,
    NOT_ENOUGH_STARTED,
    PEER_URLS_EXIST,
    TIMEOUT,
    ApiError,
    from_raft,
)
from kvstore.pb.cluster_pb2 import MemberReplaceRequest, MemberReplaceResponse
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import (
    Member,
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
    MemberUpdateResponse,
)
from raft import ChangeRefusal, ChangeRefused, PolicyUnmet, RaftError, Stopping, address_of

logger = logging.getLogger(__name__)

PUBLISH_PAUSE_S: Final = 0.5
"""Between two attempts, so that a member without a leader does not spin."""

TIMEOUT_S_MIN: Final = 0.05
"""What is left to a change when all before it took nearly too long."""

SECOND_VOTER_S: Final = 0.5
"""How long an addition of a second voter may take, before it is answered although it is not committed."""

PEER_URLS_MAX: Final = 16

_Change: TypeAlias = Callable[[float], Awaitable[None]]
"""Proposes a change, with the seconds that it may take."""


class ClusterService:
    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._turn = asyncio.Lock()
        self._unanswered: set[asyncio.Task[None]] = set()
        """Additions of a second voter, which may go on after their answer."""

    def methods(self) -> list[Method]:
        path = "/etcdserverpb.Cluster/"
        return [
            Method(path + "MemberList", MemberListRequest, self.member_list),
            Method(path + "MemberAdd", MemberAddRequest, self.member_add),
            Method(path + "MemberRemove", MemberRemoveRequest, self.member_remove),
            Method(path + "MemberUpdate", MemberUpdateRequest, self.member_update),
            Method(path + "MemberPromote", MemberPromoteRequest, self.member_promote),
            Method("/quorumlogpb.Cluster/MemberReplace", MemberReplaceRequest, self.member_replace),
        ]

    # What clients ask. No answer says a revision: as in etcd.

    async def member_list(self, request: MemberListRequest, call: Call) -> MemberListResponse:
        """List members by id. One that has never run has no name and no client URLs, as in etcd."""
        context = self._context
        context.admit(call)
        if request.linearizable:
            await context.read_barrier(call)
        response = MemberListResponse(members=self._listed())
        context.fill_header(response.header)
        return response

    async def member_add(self, request: MemberAddRequest, call: Call) -> MemberAddResponse:
        """Add a member that is to be started afterwards. Its id is told in the answer: see new_member_id."""
        context = self._context
        context.admit(call)
        urls = _checked_urls(request.peerURLs)
        new_id = self._new_id(urls)
        is_learner = request.isLearner

        def check() -> None:
            nonlocal new_id
            self._check_unused(urls)
            new_id = self._new_id(urls)

        async def change(timeout_s: float) -> None:
            await context.replica.add_member(
                new_id,
                urls,
                is_learner=is_learner,
                is_strict=context.settings.strict_reconfig_check,
                timeout_s=timeout_s,
            )

        voters = self._voters()
        if not is_learner and voters == {context.replica.node_id}:
            await self._add_second_voter(call, check, change)
        else:
            await self._make(call, check, change, voters={*voters, *([] if is_learner else [new_id])})
        member = Member(ID=new_id, peerURLs=urls, isLearner=is_learner)
        response = MemberAddResponse(member=member, members=self._listed(added=member))
        context.fill_header(response.header)
        return response

    async def member_remove(self, request: MemberRemoveRequest, call: Call) -> MemberRemoveResponse:
        """Remove a member for good: its process ends when it learns of that."""
        context = self._context
        context.admit(call)

        async def change(timeout_s: float) -> None:
            await context.replica.remove_member(
                request.ID, is_strict=context.settings.strict_reconfig_check, timeout_s=timeout_s
            )

        voters = self._voters() - {request.ID}
        await self._make(call, lambda: self._check_known(request.ID), change, voters=voters)
        response = MemberRemoveResponse(members=self._listed(without=request.ID))
        context.fill_header(response.header)
        return response

    async def member_update(self, request: MemberUpdateRequest, call: Call) -> MemberUpdateResponse:
        """Tell the others where a member is reached from now on. To listen there is its own matter."""
        context = self._context
        context.admit(call)
        urls = _checked_urls(request.peerURLs)

        def check() -> None:
            self._check_known(request.ID)
            self._check_unused(urls, except_for=request.ID)

        async def change(timeout_s: float) -> None:
            await context.replica.update_member(request.ID, urls, timeout_s=timeout_s)

        await self._make(call, check, change)
        response = MemberUpdateResponse(members=self._listed())
        context.fill_header(response.header)
        return response

    async def member_promote(self, request: MemberPromoteRequest, call: Call) -> MemberPromoteResponse:
        """Make a voter of a learner that has caught up."""
        context = self._context
        context.admit(call)

        def check() -> None:
            self._check_known(request.ID)
            if not context.replica.members[request.ID].is_learner:
                raise MEMBER_NOT_LEARNER.error()

        async def change(timeout_s: float) -> None:
            await context.replica.promote_member(
                request.ID, is_strict=context.settings.strict_reconfig_check, timeout_s=timeout_s
            )

        await self._make(call, check, change, voters=self._voters() | {request.ID})
        response = MemberPromoteResponse(members=self._listed())
        context.fill_header(response.header)
        return response

    async def member_replace(self, request: MemberReplaceRequest, call: Call) -> MemberReplaceResponse:
        """Put a new member, to be started afterwards, into the place of another, in one change."""
        context = self._context
        context.admit(call)
        urls = _checked_urls(request.peerURLs)
        new_id = self._new_id(urls)

        def check() -> None:
            nonlocal new_id
            self._check_known(request.ID)
            self._check_unused(urls, except_for=request.ID)
            new_id = self._new_id(urls)

        async def change(timeout_s: float) -> None:
            await context.replica.replace_member(
                request.ID,
                new_id,
                urls,
                is_strict=context.settings.strict_reconfig_check,
                timeout_s=timeout_s,
            )

        voters_before = self._voters()
        voters = voters_before - {request.ID} | {new_id} if request.ID in voters_before else voters_before
        await self._make(call, check, change, voters=voters)
        new = Member(ID=new_id, peerURLs=urls, isLearner=request.ID not in voters_before)
        members = self._listed(added=new, without=request.ID)
        response = MemberReplaceResponse(member=new, members=members)
        context.fill_header(response.header)
        return response

    # How a change is made

    async def _make(
        self,
        call: Call,
        check: Callable[[], None],
        change: _Change,
        *,
        voters: Iterable[int] = (),
    ) -> None:
        """Make `change`, if `check` lets it pass in the newest configuration. `voters`: who would vote
        then. Raises ApiError.

        One at a time, so that what was checked still holds. Changes of the same moment at other members
        are not seen by it, but two members that are added with the same URLs then have the same id.
        """
        check_no_wish(call)
        context = self._context
        loop = asyncio.get_running_loop()
        deadline = loop.time() + context.timeout_s(call)
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise TIMEOUT.error() from None
        try:
            await context.read_barrier(call)
            check()
            await change(max(deadline - loop.time(), TIMEOUT_S_MIN))
        except ChangeRefused as error:
            if error.refusal is not ChangeRefusal.NOTHING_TO_DO:
                raise self._refused(error, voters) from error
        except RaftError as error:
            raise from_raft(error, leader_known=bool(context.replica.leader)) from error
        finally:
            self._turn.release()

    async def _add_second_voter(self, call: Call, check: Callable[[], None], change: _Change) -> None:
        """Add a voter to a cluster of one, which is this member.

        That change counts from the moment it is in the log, so it cannot be committed before the new voter
        runs; and nobody can start that who was not told its id. But once it is in the log of the only voter
        nobody is left who could undo it.
        """
        task = asyncio.ensure_future(self._make(call, check, change))
        self._unanswered.add(task)
        task.add_done_callback(self._second_voter_added)
        await asyncio.wait([task], timeout=SECOND_VOTER_S)
        if task.done():
            await task

    def _second_voter_added(self, task: asyncio.Task[None]) -> None:
        self._unanswered.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.info("the addition of a second voter was not confirmed: %s", task.exception())

    def _refused(self, error: ChangeRefused, voters: Iterable[int]) -> ApiError:
        """Return what a client is told. etcd tells two kinds of missing majority apart: members that were
        added and never started, and members that are down."""
        if error.refusal is ChangeRefusal.QUORUM_AT_RISK:
            voters = set(voters)
            if sum(map(self._is_started, voters)) < len(voters) // 2 + 1:
                return NOT_ENOUGH_STARTED.error()
        if error.refusal is ChangeRefusal.ID_USED:  # nobody adds one: ids are made up here
            return MEMBER_NOT_FOUND.error()
        return from_raft(error, leader_known=bool(self._context.replica.leader))

    def _is_started(self, member_id: int) -> bool:
        member = self._context.replica.members.get(member_id)
        if member is None:
            return False
        return member.incarnation != 0 or member_id in self._context.store.published_members()

    def _voters(self) -> set[int]:
        return {i for i, member in self._context.replica.members.items() if not member.is_learner}

    def _check_known(self, member_id: int) -> None:
        if member_id not in self._context.replica.members:
            raise MEMBER_NOT_FOUND.error()

    def _check_unused(self, urls: Sequence[str], *, except_for: int = 0) -> None:
        members = self._context.replica.members
        if any(not set(urls).isdisjoint(m.peer_urls) for i, m in members.items() if i != except_for):
            raise PEER_URLS_EXIST.error()

    def _new_id(self, urls: Sequence[str]) -> int:
        replica = self._context.replica
        return new_member_id(urls, replica.cluster_id, sorted(replica.members), replica.removed_members)

    def _listed(self, *, added: Member | None = None, without: int = 0) -> list[Member]:
        """Return the members by id. Only those of the configuration: what a member published outlives it.
        `added`: one that may not be in it yet. `without`: one that is gone; itself, it may not know."""
        published = self._context.store.published_members()
        listed = []
        for member_id, info in self._context.replica.members.items():
            member = Member(ID=member_id, peerURLs=info.peer_urls, isLearner=info.is_learner)
            if member_id in published:
                member.name = published[member_id].name
                member.clientURLs.extend(published[member_id].client_urls)
            listed.append(member)
        listed = [member for member in listed if member.ID != without]
        if added is not None and all(member.ID != added.ID for member in listed):
            listed.append(added)
        return sorted(listed, key=lambda member: member.ID)


def new_member_id(
    peer_urls: Sequence[str], cluster_id: int, members: Sequence[int], removed: Sequence[int]
) -> int:
    """Return an id that no member ever had: etcd's way (the first 8 bytes of a SHA-1), with the present and
    the past members instead of the time.

    So an addition that is repeated while the first, of unknown outcome, may still be committed has the same
    id, and is refused where another would become a second member with the same URLs.
    """
    text = repr((list(peer_urls), cluster_id, list(members), list(removed))).encode()
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8]) or 1


def _checked_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Return peer URLs in the one form http://host:port, sorted, as members compare them. Raises ApiError.

    etcd takes no path; here one slash may follow the port.
    """
    try:
        checked = sorted({f"http://{address_of(url.strip())}" for url in urls})
    except ValueError:
        raise MEMBER_BAD_URLS.error() from None
    if not 0 < len(checked) <= PEER_URLS_MAX:
        raise MEMBER_BAD_URLS.error()
    return tuple(checked)


async def publish_member(context: ApiContext, name: str, client_urls: Sequence[str]) -> None:
    """Make this member's name and client URLs known, unless they are. Tries until it is done.

    Run it as a task beside the server; it ends by itself, or by Stopping. To repeat it after an
    unknown outcome is safe: the command replaces what it stored before.
    """
    member_id = context.replica.node_id
    request = PublishRequest(member_id=member_id, name=name, client_urls=client_urls)
    command = encode_command(CommandKind.PUBLISH, request.SerializeToString(deterministic=True))
    while context.store.published_members().get(member_id) != request:
        try:
            await context.replica.propose(command, timeout_s=context.settings.request_timeout_s)
        except Stopping:
            raise
        except PolicyUnmet:
            pass  # it is published; nobody waits for more members to have it
        except RaftError as error:
            logger.info("cannot publish this member yet: %s", error)
            await asyncio.sleep(PUBLISH_PAUSE_S)
