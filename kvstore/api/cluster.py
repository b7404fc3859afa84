"""etcdserverpb.Cluster: MemberList; and how a member tells the others where clients reach it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from kvstore.api.call import ApiContext, Call, Method
from kvstore.commands import CommandKind, encode_command
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import MemberListRequest, MemberListResponse
from raft import RaftError, Stopping

logger = logging.getLogger(__name__)

PUBLISH_PAUSE_S = 0.5
"""Between two attempts, so that a member without a leader does not spin."""


class ClusterService:
    def __init__(self, context: ApiContext, peer_urls: Mapping[int, Sequence[str]]) -> None:
        """`peer_urls`: of every member, by member id."""
        self._context = context
        self._peer_urls = peer_urls

    def methods(self) -> list[Method]:
        return [Method("/etcdserverpb.Cluster/MemberList", MemberListRequest, self.member_list)]

    async def member_list(self, request: MemberListRequest, call: Call) -> MemberListResponse:
        """List members by id. One that has never run has no name and no client URLs, as in etcd."""
        context = self._context
        context.check_leader(call)
        if request.linearizable:
            await context.read_barrier(call)
        published = context.store.published_members()
        response = MemberListResponse()
        for member_id in sorted(self._peer_urls):
            member = response.members.add(ID=member_id, peerURLs=self._peer_urls[member_id])
            if member_id in published:
                member.name = published[member_id].name
                member.clientURLs.extend(published[member_id].client_urls)
        context.fill_header(response.header)
        return response


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
        except RaftError as error:
            logger.info("cannot publish this member yet: %s", error)
            await asyncio.sleep(PUBLISH_PAUSE_S)
