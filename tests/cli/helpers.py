"""Running the command as a user does, and ports that misbehave in the usual ways."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import grpc
import grpc.aio

COMMAND_TIMEOUT_S = 60
"""Only against a hang: every command ends by its own time limit long before."""

FAULT_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()


def quorumlog(
    *arguments: str | bytes, stdin: bytes | IO[bytes] = b"", endpoints: str | None = None, **options: Any
) -> Outcome:
    """Run `python -m quorumlog` to its end. `stdin` is what it reads, or a file to read from."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUORUMLOG_")}
    if endpoints is not None:
        environment["QUORUMLOG_ENDPOINTS"] = endpoints
    finished = subprocess.run(
        [sys.executable, "-m", "quorumlog", *arguments],
        **({"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        env=environment | options.pop("env", {}),
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        **options,
    )
    return Outcome(finished.returncode, finished.stdout or b"", finished.stderr.decode())


def assert_one_line(outcome: Outcome, status: int, *parts: str) -> None:
    """The command failed as it should: with this status and one line on stderr with these parts."""
    assert outcome.status == status, outcome
    assert outcome.stderr.count("\n") == 1 and outcome.stderr.endswith("\n"), outcome.stderr
    assert outcome.stderr.startswith("quorumlog"), outcome.stderr
    for part in parts:
        assert part in outcome.stderr, outcome.stderr


@contextlib.contextmanager
def refusing_endpoint() -> Iterator[str]:
    """An address where connections are refused. The port is held, so that nobody else gets it."""
    with socket.socket() as held:
        held.bind((FAULT_ADDRESS, 0))
        yield f"{FAULT_ADDRESS}:{held.getsockname()[1]}"


@contextlib.contextmanager
def silent_endpoint() -> Iterator[str]:
    """An address that takes connections and never says a word, like a paused process."""
    with socket.socket() as listener:
        listener.bind((FAULT_ADDRESS, 0))
        listener.listen(16)
        yield f"{FAULT_ADDRESS}:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def speaking_endpoint(first_words: bytes) -> AsyncIterator[str]:
    """An address that answers every connection with `first_words` and hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(24)
            writer.write(first_words)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, FAULT_ADDRESS, 0)
    try:
        yield f"{FAULT_ADDRESS}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


Script = Callable[[str, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


class ScriptedServer:
    """A real gRPC server whose every answer is written by the test. Counts the calls by method."""

    def __init__(self, script: Script) -> None:
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.endpoint = ""
        self._script = script
        self._server = grpc.aio.server()

    async def __aenter__(self) -> ScriptedServer:
        server = self

        class AnyMethod(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                async def answer(request: bytes, context: Any) -> bytes:
                    server.calls.append(details.method.rpartition("/")[2])
                    server.metadata.append(dict(context.invocation_metadata()))
                    return await server._script(server.calls[-1], context)

                return grpc.unary_unary_rpc_method_handler(answer)

        self._server.add_generic_rpc_handlers((AnyMethod(),))
        self.endpoint = f"{FAULT_ADDRESS}:{self._server.add_insecure_port(f'{FAULT_ADDRESS}:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


def failing(code: str, text: str, applied: str | None = None) -> Script:
    """A script that ends every call with this status."""

    async def script(method: str, context: Any) -> bytes:
        trailers: Sequence[tuple[str, str]] = (("quorumlog-applied", applied),) if applied else ()
        await context.abort(grpc.StatusCode[code], text, trailers)
        raise AssertionError("abort raises")

    return script


async def never(method: str, context: Any) -> bytes:
    """A script that takes the request and does not answer, like a leader without a quorum."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets that event")


async def empty(method: str, context: Any) -> bytes:
    """A script that answers every request with a message whose fields are all zero."""
    return b""
