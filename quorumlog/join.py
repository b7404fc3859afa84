"""The data directory of a member: taken as it is, made for a new cluster, or made for one that runs.

A member that was added to a running cluster (`--initial-cluster-state existing`) knows neither its id nor
the cluster's. It asks the other members of --initial-cluster, finds itself by its own peer URLs, and makes
its data directory for what it was told:

    restored.json    if the cluster was made out of a snapshot: this member must wait for a state, its log
                     cannot tell all of it. First, for a member without it would not wait
    identity.json    cluster id, own id, and the configuration at index 0, which is in no log

A crash before identity.json: it asks again, and is told the same id. After it: it is that member.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Final

from quorumlog.flags import ServeConfig, cluster_id
from quorumlog.restore import read_base, write_base
from raft import (
    ClusterDescription,
    ConfigError,
    DataDirectory,
    DescribedMember,
    InitialMember,
    RaftError,
    StorageError,
    WrongIdentity,
    address_of,
    describe_cluster,
)

logger = logging.getLogger("quorumlog.serve")

DESCRIBE_TIMEOUT_S: Final = 3.0
ASK_PAUSE_S: Final = 1.0
ASK_REPEATS_TOLD: Final = 10
"""The same failure is logged again after so many rounds."""
UNLISTED_S: Final = 5.0
"""How long an answer that does not fit the settings is doubted: a member may lag behind the addition."""


async def open_directory(config: ServeConfig, ended: asyncio.Event) -> DataDirectory | None:
    """Open the data directory, or make it at the first start. None if `ended` is set meanwhile.

    One that was used is taken as it is, as in etcd, with `existing`, or if this member joined. Otherwise it
    must be that of the --initial-cluster given. Raises ConfigError, StorageError.
    """
    directory = _used_directory(config)
    if directory is None and config.is_joining:
        description = await _ask_cluster(config, ended)
        if description is None:
            return None
        directory = _make_joined(config, *description)
    elif directory is None:
        directory = DataDirectory.open(
            config.data_dir,
            cluster_id=cluster_id(list(config.members), read_base(config.data_dir)),
            node_id=config.node_id,
            members=config.members,
        )
    return directory


def _used_directory(config: ServeConfig) -> DataDirectory | None:
    """Return the directory if it was used before, and may be taken as it is."""
    try:
        directory = DataDirectory.open(config.data_dir)
    except WrongIdentity:
        return None  # it was never used: this is its first start
    if config.is_joining or not config.is_cluster_given or directory.is_joined:
        return directory
    directory.close()  # to be opened as that of the cluster given
    return None


async def _ask_cluster(
    config: ServeConfig, ended: asyncio.Event
) -> tuple[ClusterDescription, DescribedMember] | None:
    """Ask the other members until one answers; return what it said, and this member's entry in it.

    Raises ConfigError if the answers go on not to fit the settings.
    """
    addresses = [
        address_of(url)
        for member in config.members.values()
        if member.name != config.name
        for url in member.peer_urls
    ]
    if not addresses:
        raise ConfigError(
            ["--initial-cluster-state existing: --initial-cluster must name the other members too"]
        )
    loop = asyncio.get_running_loop()
    doubted_since_s: float | None = None
    told, repeats = "", 0
    while not ended.is_set():
        answers, reasons = await _ask_all(addresses)
        faults: list[str] = []
        for answer in answers:
            found, faults = _own_entry(config, answer)
            if found is not None:
                return answer, found
        if faults:
            doubted_since_s = loop.time() if doubted_since_s is None else doubted_since_s
            if loop.time() - doubted_since_s > UNLISTED_S:
                raise ConfigError(faults)
        news = "; ".join(faults or reasons)
        repeats = repeats + 1 if news == told else 0
        if repeats % ASK_REPEATS_TOLD == 0:
            logger.info("cannot join the cluster yet, trying on: %s", news)
        told = news
        try:
            async with asyncio.timeout(ASK_PAUSE_S):
                await ended.wait()
        except TimeoutError:
            continue
    return None


async def _ask_all(addresses: Sequence[str]) -> tuple[list[ClusterDescription], list[str]]:
    """Ask all at once; return the answers, and why the others gave none."""
    results = await asyncio.gather(
        *(describe_cluster(address, timeout_s=DESCRIBE_TIMEOUT_S) for address in addresses),
        return_exceptions=True,
    )
    answers, reasons = [], []
    for address, result in zip(addresses, results, strict=True):
        if isinstance(result, ClusterDescription):
            answers.append(result)
        elif isinstance(result, RaftError | OSError):
            reasons.append(f"{address}: {result}")
        else:
            raise result
    return answers, reasons


def _own_entry(
    config: ServeConfig, description: ClusterDescription
) -> tuple[DescribedMember | None, list[str]]:
    """Find this member by its peer URLs, and compare the rest, as etcd does; return it, or the faults."""
    own = _urls(config.advertise_peer_urls)
    found = next((member for member in description.members if _urls(member.peer_urls) == own), None)
    where = f"cluster {description.cluster_id:x}"
    if found is None:
        flag = f"--peer-urls {','.join(sorted(own))}"
        return None, [
            f"no member of {where} has the peer URLs of this one, {_shown([own])}: add it first "
            f"(quorumlog member add {config.name} {flag}). Its members are {_listed(description)}"
        ]
    if found.incarnation:
        return None, [
            f"member {found.node_id:x} of {where} was started before, with another data directory than "
            f"{config.data_dir}: what it has promised is in that one. Start it there; if that is lost, put a "
            f"new member in its place (quorumlog member replace {found.node_id:x} ...)"
        ]
    given = {_urls(member.peer_urls) for member in config.members.values()}
    if len(given) != len(description.members):
        return None, [
            f"--initial-cluster: member count is unequal: it names {len(given)}, and {where} has "
            f"{len(description.members)}: {_listed(description)}"
        ]
    if unknown := given - {_urls(member.peer_urls) for member in description.members}:
        return None, [
            f"--initial-cluster: no member of {where} has the peer URLs {_shown(unknown)}; its members are "
            f"{_listed(description)}"
        ]
    return found, []


def _make_joined(config: ServeConfig, description: ClusterDescription, own: DescribedMember) -> DataDirectory:
    if description.application:
        try:
            os.makedirs(config.data_dir, exist_ok=True)
            write_base(config.data_dir, description.application)
        except OSError as error:
            raise StorageError(
                f"the data directory {config.data_dir} cannot be made: {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise StorageError(
                f"cluster {description.cluster_id:x} says that it was restored, in a way that this version "
                f"does not know ({error}): use the version of its members"
            ) from error
    names = {_urls(member.peer_urls): member.name for member in config.members.values()}
    directory = DataDirectory.open(
        config.data_dir,
        cluster_id=description.cluster_id,
        node_id=own.node_id,
        members={
            member.node_id: InitialMember(
                names.get(_urls(member.peer_urls), f"{member.node_id:x}"), member.peer_urls
            )
            for member in description.initial
        },
        is_joining=True,
    )
    logger.info(
        "joins cluster %x as member %x (%s)",
        description.cluster_id,
        own.node_id,
        "learner" if own.is_learner else "voter",
    )
    return directory


def _urls(urls: Iterable[str]) -> frozenset[str]:
    return frozenset(urls)


def _listed(description: ClusterDescription) -> str:
    return _shown(_urls(member.peer_urls) for member in description.members)


def _shown(members: Iterable[frozenset[str]]) -> str:
    return ", ".join(sorted("+".join(sorted(urls)) for urls in members))
