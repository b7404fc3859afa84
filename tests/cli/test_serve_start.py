"""The order in which serve begins: nobody reads a state that is older than what this member has shown."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kvstore import ApiContext
from kvstore.client import Client, ClientError
from kvstore.state_directory import mark_corrupt
from quorumlog import serve
from quorumlog.flags import ServeConfig, add_options, load
from tests.ports import free_port


def config_for(data_dir: Path) -> ServeConfig:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    parser = argparse.ArgumentParser()
    add_options(parser)
    arguments = {
        "--name": "n1",
        "--data-dir": str(data_dir),
        "--listen-client-urls": client,
        "--advertise-client-urls": client,
        "--listen-peer-urls": peer,
        "--initial-advertise-peer-urls": peer,
        "--initial-cluster": f"n1={peer}",
        "--election-timeout": "200",
        "--heartbeat-interval": "20",
    }
    return load(parser.parse_args([word for pair in arguments.items() for word in pair]), {})


@asynccontextmanager
async def running(config: ServeConfig) -> AsyncIterator[None]:
    server = serve._Server(config)
    task = asyncio.create_task(server.run())
    try:
        yield
    finally:
        server._ended.set()
        async with asyncio.timeout(20):
            await task


async def served(client: Client) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(ClientError):
                await client.get(b"k")
                return
            await asyncio.sleep(0.02)


async def test_the_door_opens_when_the_log_is_replayed_into_a_state_that_was_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A serializable read waits for nobody. Through a door that is open during the replay it found nothing
    at all, at revision 1, where this member had shown all of it the moment before."""
    config = config_for(tmp_path)
    async with running(config), Client(config.listen_client_urls, timeout_s=15) as client:
        await served(client)
        for number in range(200):
            last = await client.put(b"k%d" % number, b"v")
    mark_corrupt(str(tmp_path / "state" / "slot-000001"), "damaged by this test")

    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    build_methods = serve.build_methods

    def build(context: ApiContext, *arguments: Any) -> Any:
        opened.set_result(context.store.revision)
        return build_methods(context, *arguments)

    monkeypatch.setattr(serve, "build_methods", build)
    async with running(config), asyncio.timeout(20):
        # The last write alone may wait for a leader: nothing came after it to note its commit.
        assert await opened >= last.header.revision - 1
