"""The settings of `quorumlog serve`: etcd's flags under etcd's names, checked all at once.

A setting comes from, in this order: its flag, its environment variable (QUORUMLOG_ and the flag's name
in capitals, e.g. QUORUMLOG_DATA_DIR), the TOML file of --config-file (keys are the flags' names), its
default. Unlike with etcd a file does not switch the other two off.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from kvstore import AutoCompaction, checked_labels
from raft import NO_NODE, ConfigError, InitialMember, NodeId, address_of

ENV_PREFIX: Final = "QUORUMLOG_"
LOG_LEVELS: Final = ("debug", "info", "warn", "error")
ELECTION_TIMEOUT_MS_MAX: Final = 50_000
"""etcd's. Above it a cluster without a leader is indistinguishable from a dead one."""
HEARTBEAT_INTERVAL_MS_MIN: Final = 10
"""An event loop that also serves clients cannot promise more."""
REQUEST_BYTES_MAX: Final = 60 * 1024 * 1024
"""An entry of the log has 64 MiB at most."""
LOG_BYTES_MIN: Final = 64 * 1024
"""Of everything that is measured in bytes of log or state: below it every other write would be a sync."""
LOG_STALL_EXIT_S_MAX: Final = 3600
SEGMENT_BYTES_MAX: Final = 1024 * 1024 * 1024
BYTES_MAX: Final = 1 << 50
COUNT_MAX: Final = 1 << 31
UNREPLICATED_MS_MAX: Final = 3_600_000
FLUSH_BYTES_MAX: Final = 128 * 1024 * 1024
"""Twice as much may lie in LevelDB's memory: see kvstore.state_directory.MEMTABLE_BYTES_MAX."""
NAME_CHARS_MAX: Final = 255
LEARNERS_MAX: Final = 64
"""Each costs the leader as much as a voter does."""

_DURATION_PARTS: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(h|ms|m|s)", re.ASCII)
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Option(NamedTuple):
    """One setting."""

    name: str
    """The flag without its dashes, and the key in a file."""
    default: str
    help: str
    metavar: str = "TEXT"
    is_switch: bool = False

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper().replace("-", "_")


OPTIONS: Final = (
    Option("name", "default", "human-readable name of this member, its key in --initial-cluster"),
    Option("data-dir", "", "directory of log, state and identity (default: NAME.quorumlog)", "PATH"),
    Option("listen-client-urls", "http://localhost:2379", "where to listen for clients", "URLS"),
    Option("advertise-client-urls", "", "what clients are told (default: where it listens)", "URLS"),
    Option("listen-peer-urls", "http://localhost:2380", "where to listen for members", "URLS"),
    Option(
        "initial-advertise-peer-urls", "", "where members reach this one (default: where it listens)", "URLS"
    ),
    Option(
        "initial-cluster",
        "",
        "NAME=URL,NAME=URL,... of all members, at the first start (default: this one alone)",
        "MEMBERS",
    ),
    Option(
        "initial-cluster-state",
        "new",
        "at the first start: `new` for a member of a new cluster, `existing` for one that was added to a "
        "running cluster",
        "new|existing",
    ),
    Option("initial-cluster-token", "quorumlog-cluster", "goes into the ids, to tell clusters apart"),
    Option(
        "strict-reconfig-check",
        "true",
        "refuse a change of the members after which those that are there would be no majority",
        is_switch=True,
    ),
    Option("max-learners", "1", "most members without a vote at a time", "COUNT"),
    Option("heartbeat-interval", "100", "milliseconds between heartbeats of a leader", "MS"),
    Option("election-timeout", "1000", "milliseconds without a leader before an election", "MS"),
    Option("max-request-bytes", "1572864", "largest request of a client", "BYTES"),
    Option("max-txn-ops", "128", "most operations in a transaction", "COUNT"),
    Option(
        "auto-compaction-mode",
        "periodic",
        "what --auto-compaction-retention counts: time (periodic) or revisions (revision)",
        "MODE",
    ),
    Option(
        "auto-compaction-retention",
        "0",
        "history to keep: hours or a duration like 90m, or a number of revisions; 0 keeps all",
        "AMOUNT",
    ),
    Option(
        "log-bytes-max",
        "536870912",
        "how much of the Raft log is kept for members that are behind; one further back gets a snapshot",
        "BYTES",
    ),
    Option("log-segment-bytes", "67108864", "size of one file of the Raft log", "BYTES"),
    Option(
        "log-stall-exit",
        "20",
        "seconds after which a disk that hangs (a write of the log that has not returned, an event loop that "
        "stands still) ends the process; not before three election timeouts",
        "SECONDS",
    ),
    Option(
        "state-flush-bytes",
        "33554432",
        "make the state durable after so much was written to it: what is replayed after a crash",
        "BYTES",
    ),
    Option(
        "snapshot-bytes-per-second",
        "67108864",
        "at most so much to a member that is sent a snapshot",
        "BYTES",
    ),
    Option(
        "labels",
        "",
        "what the ack policy may ask for: NAME=VALUE,... of this member, e.g. zone=dr,rack=7. Replace those "
        "that it had; if left out, it keeps them",
        "LABELS",
    ),
    Option(
        "unsafe-allow-leader-ack",
        "false",
        "let a put or a delete ask, by the metadata x-ack: leader, to be acknowledged when the leader alone "
        "has it. Such a write may be lost: see the end of this page",
        is_switch=True,
    ),
    Option(
        "max-unreplicated-entries",
        "1000",
        "most writes of that kind which a majority lacks; above it they are refused",
        "COUNT",
    ),
    Option("max-unreplicated-bytes", "1048576", "the same in bytes", "BYTES"),
    Option("max-unreplicated-ms", "1000", "the same by the age of the oldest", "MS"),
    Option("log-level", "info", "one of " + ", ".join(LOG_LEVELS), "LEVEL"),
    Option("insecure", "false", "listen beyond loopback although there is no TLS yet", is_switch=True),
    Option(
        "enable-fault-injection",
        "false",
        "for tests and demonstrations: let `quorumlog fault` cut, slow and lose what passes between this "
        "member and others, through a socket in the data directory that only its owner can use",
        is_switch=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings that were checked."""

    name: str
    data_dir: str
    listen_client_urls: tuple[str, ...]
    advertise_client_urls: tuple[str, ...]
    listen_peer_urls: tuple[str, ...]
    cluster_id: int
    node_id: NodeId
    members: Mapping[NodeId, InitialMember]
    """By --initial-cluster."""
    is_cluster_given: bool
    """Whether --initial-cluster was given. If not, a data directory that is there says who the
    members are."""
    is_joining: bool
    """It was added to a running cluster, which says who the members are and which id this one has: of
    `members` only the URLs count."""
    advertise_peer_urls: tuple[str, ...]
    strict_reconfig_check: bool
    learners_max: int
    heartbeat_interval_ms: int
    election_timeout_ms: int
    max_request_bytes: int
    max_txn_ops: int
    auto_compaction: AutoCompaction | None
    """None: history is given up only when somebody asks for it."""
    log_bytes_max: int
    log_segment_bytes: int
    log_stall_exit_s: int
    state_flush_bytes: int
    snapshot_bytes_per_s_max: int
    labels: tuple[tuple[str, str], ...] | None
    """None: those that the member has."""
    allows_leader_ack: bool
    unreplicated_entries_max: int
    unreplicated_bytes_max: int
    unreplicated_ms_max: int
    is_fault_injection_enabled: bool
    log_level: str


def member_id(peer_urls: tuple[str, ...], token: str) -> NodeId:
    """Return the id of the member with these peer URLs: every member computes the same."""
    text = ",".join(sorted(peer_urls)) + token
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8]) or 1


def cluster_id(member_ids: list[NodeId], base: bytes = b"") -> int:
    """Return the id of the cluster that begins with these members, and with what it was restored to
    (`kvstore.restore.Base`, packed): only members that agree in both may talk to each other."""
    text = b"".join(i.to_bytes(8) for i in sorted(member_ids)) + base
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8]) or 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every setting as a flag. What is not given is None, so that `load` can look elsewhere."""
    parser.add_argument("--config-file", metavar="PATH", help=f"TOML file ({ENV_PREFIX}CONFIG_FILE)")
    for option in OPTIONS:
        text = option.help
        if option.default and not option.is_switch:
            text += f" (default: {option.default})"
        if option.is_switch:
            if option.default == "true":
                text += " (default: true; --NAME=false)".replace("NAME", option.name)
            parser.add_argument(f"--{option.name}", nargs="?", const="true", metavar="true|false", help=text)
        else:
            parser.add_argument(f"--{option.name}", metavar=option.metavar, help=text)


def load(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ServeConfig:
    """Gather and check the settings. Raises ConfigError with all faults."""
    faults: list[str] = []
    path = arguments.config_file or environ.get(ENV_PREFIX + "CONFIG_FILE")
    from_file = _read_file(path, faults) if path else {}
    values: dict[str, str] = {}
    for option in OPTIONS:
        flag = getattr(arguments, option.name.replace("-", "_"), None)
        for found in (flag, environ.get(option.env), from_file.get(option.name)):
            if found is not None:
                values[option.name] = found
                break
        else:
            values[option.name] = option.default
    config = _Check(values, faults).config()
    if faults:
        raise ConfigError(faults)
    assert config is not None
    return config


def _read_file(path: str, faults: list[str]) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        faults.append(f"--config-file {path}: {error.strerror or error}")
        return {}
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        faults.append(f"--config-file {path}: {error}")
        return {}
    known = {option.name for option in OPTIONS}
    values = {}
    for key, value in content.items():
        if key not in known:
            faults.append(f"--config-file {path}: no setting is called {key}")
        else:
            text = _text(value)
            if text is None:
                faults.append(f"--config-file {path}: {key} must be a text, a number or a list of texts")
            else:
                values[key] = text
    return values


def _text(value: Any) -> str | None:
    """Return a value of the file as it would stand on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return None


class _Check:
    """Turns texts into settings and notes every fault on the way."""

    def __init__(self, values: Mapping[str, str], faults: list[str]) -> None:
        self._values = values
        self._faults = faults

    def config(self) -> ServeConfig | None:
        values, faults = self._values, self._faults
        name = values["name"]
        if not name or len(name) > NAME_CHARS_MAX or any(c in name for c in "=,/\0"):
            faults.append(f"--name {name!r}: 1 to {NAME_CHARS_MAX} characters, none of them = , or /")
        if values["initial-cluster-state"] not in ("new", "existing"):
            faults.append(f"--initial-cluster-state {values['initial-cluster-state']!r}: new or existing")
        is_insecure = self._switch("insecure")
        is_strict = self._switch("strict-reconfig-check")
        is_faulty = self._switch("enable-fault-injection")
        listen_client = self._listen_urls("listen-client-urls", is_insecure)
        listen_peer = self._listen_urls("listen-peer-urls", is_insecure)
        advertise_client = self._advertised("advertise-client-urls", "listen-client-urls", listen_client)
        advertise_peer = self._advertised("initial-advertise-peer-urls", "listen-peer-urls", listen_peer)
        heartbeat_ms = self._number("heartbeat-interval", HEARTBEAT_INTERVAL_MS_MIN, ELECTION_TIMEOUT_MS_MAX)
        election_ms = self._number("election-timeout", 1, ELECTION_TIMEOUT_MS_MAX)
        if heartbeat_ms and election_ms and election_ms < 5 * heartbeat_ms:
            faults.append(
                f"--election-timeout {election_ms} must be at least 5 times --heartbeat-interval "
                f"{heartbeat_ms}"
            )
        request_bytes = self._number("max-request-bytes", 1, REQUEST_BYTES_MAX)
        txn_ops = self._number("max-txn-ops", 1, 1 << 20)
        learners = self._number("max-learners", 1, LEARNERS_MAX)
        auto_compaction = self._auto_compaction()
        log_bytes = self._number("log-bytes-max", LOG_BYTES_MIN, BYTES_MAX)
        segment_bytes = self._number("log-segment-bytes", LOG_BYTES_MIN, SEGMENT_BYTES_MAX)
        stall_exit_s = self._number("log-stall-exit", 1, LOG_STALL_EXIT_S_MAX)
        flush_bytes = self._number("state-flush-bytes", LOG_BYTES_MIN, FLUSH_BYTES_MAX)
        snapshot_bytes = self._number("snapshot-bytes-per-second", LOG_BYTES_MIN, BYTES_MAX)
        if values["log-level"] not in LOG_LEVELS:
            faults.append(f"--log-level {values['log-level']!r}: one of {', '.join(LOG_LEVELS)}")
        labels = self._labels()
        allows_leader_ack = self._switch("unsafe-allow-leader-ack")
        unreplicated_entries, unreplicated_bytes, unreplicated_ms = self._unreplicated()
        members = self._members(name, advertise_peer)
        if faults:
            return None
        return ServeConfig(
            name=name,
            data_dir=values["data-dir"] or f"{name}.quorumlog",
            listen_client_urls=listen_client,
            advertise_client_urls=advertise_client,
            listen_peer_urls=listen_peer,
            cluster_id=cluster_id(list(members)),
            node_id=next(i for i, member in members.items() if member.name == name),
            members=members,
            is_cluster_given=bool(values["initial-cluster"]),
            is_joining=values["initial-cluster-state"] == "existing",
            advertise_peer_urls=advertise_peer,
            strict_reconfig_check=is_strict,
            learners_max=learners,
            heartbeat_interval_ms=heartbeat_ms,
            election_timeout_ms=election_ms,
            max_request_bytes=request_bytes,
            max_txn_ops=txn_ops,
            auto_compaction=auto_compaction,
            log_bytes_max=log_bytes,
            log_segment_bytes=segment_bytes,
            log_stall_exit_s=stall_exit_s,
            state_flush_bytes=flush_bytes,
            snapshot_bytes_per_s_max=snapshot_bytes,
            labels=labels,
            allows_leader_ack=allows_leader_ack,
            unreplicated_entries_max=unreplicated_entries,
            unreplicated_bytes_max=unreplicated_bytes,
            unreplicated_ms_max=unreplicated_ms,
            is_fault_injection_enabled=is_faulty,
            log_level=values["log-level"],
        )

    def _unreplicated(self) -> tuple[int, int, int]:
        return (
            self._number("max-unreplicated-entries", 1, COUNT_MAX),
            self._number("max-unreplicated-bytes", 1, BYTES_MAX),
            self._number("max-unreplicated-ms", 1, UNREPLICATED_MS_MAX),
        )

    def _labels(self) -> tuple[tuple[str, str], ...] | None:
        text = self._values["labels"]
        pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
        try:
            labels = checked_labels((name, value) for name, _, value in pairs)
        except ValueError as error:
            self._faults.append(f"--labels {text!r}: {error}")
            return None
        return labels or None

    def _switch(self, name: str) -> bool:
        value = self._values[name].lower()
        if value not in ("true", "false"):
            self._faults.append(f"--{name} {value!r}: true or false")
        return value == "true"

    def _number(self, name: str, low: int, high: int) -> int:
        """Return the number, or 0 with a fault noted."""
        text = self._values[name]
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            self._faults.append(f"--{name} {text!r}: a whole number from {low} to {high}")
            return 0
        return int(text)

    def _auto_compaction(self) -> AutoCompaction | None:
        name = self._values["auto-compaction-mode"]
        mode: Literal["periodic", "revision"] = "revision" if name == "revision" else "periodic"
        text = self._values["auto-compaction-retention"]
        if mode != name:
            self._faults.append(f"--auto-compaction-mode {name!r}: periodic or revision")
            return None
        if text.isascii() and text.isdigit() and len(text) < 19:
            amount = int(text) if mode == "revision" else int(text) * 3600
            return AutoCompaction(mode, amount) if amount else None
        parts = _DURATION_PARTS.findall(text)
        seconds = int(sum(float(number) * _UNITS_S[unit] for number, unit in parts))
        if mode == "revision" or not parts or "".join(map("".join, parts)) != text or seconds < 1:
            wanted = (
                "a number of revisions" if mode == "revision" else "hours, or a duration like 90m or 1h30m"
            )
            self._faults.append(f"--auto-compaction-retention {text!r}: {wanted}; 0 keeps all")
            return None
        return AutoCompaction(mode, seconds)

    def _urls(self, what: str, text: str) -> tuple[str, ...]:
        """Return URLs in the one form http://host:port, as they go into ids and comparisons."""
        urls = []
        for part in filter(None, map(str.strip, text.split(","))):
            if part.startswith("https:"):
                self._faults.append(f"{what} {part}: TLS is not supported yet, use http")
                continue
            try:
                urls.append(f"http://{address_of(part)}")
            except ValueError as error:
                self._faults.append(f"{what}: {error}")
        return tuple(urls)

    def _listen_urls(self, name: str, is_insecure: bool) -> tuple[str, ...]:
        text = self._values[name]
        urls = self._urls(f"--{name}", text)
        if not text.strip(" ,"):
            self._faults.append(f"--{name} is empty")
        for url in urls:
            if not is_insecure and not _is_loopback(_host(url)):
                self._faults.append(
                    f"--{name} {url} is not on loopback: there is no TLS and no authentication yet, so "
                    "whoever reaches this address could read and write everything (--insecure accepts that)"
                )
        return urls

    def _advertised(self, name: str, listen_name: str, listen: tuple[str, ...]) -> tuple[str, ...]:
        if self._values[name]:
            return self._urls(f"--{name}", self._values[name])
        for url in listen:
            if _is_wildcard(_host(url)):
                self._faults.append(f"--{name} must be given, since --{listen_name} {url} is every address")
        return listen

    def _members(self, name: str, advertised: tuple[str, ...]) -> dict[NodeId, InitialMember]:
        """Return the members of --initial-cluster by id."""
        token = self._values["initial-cluster-token"]
        text = self._values["initial-cluster"]
        urls_of: dict[str, list[str]] = {}
        if not text:
            urls_of[name] = list(advertised)
        for part in filter(None, map(str.strip, text.split(","))):
            member, equals, url = part.partition("=")
            if not member or not equals:
                self._faults.append(f"--initial-cluster: {part!r} is not NAME=URL")
                continue
            urls_of.setdefault(member, []).extend(self._urls("--initial-cluster", url))
        members: dict[NodeId, InitialMember] = {}
        seen: set[str] = set()
        for member, urls in urls_of.items():
            for url in urls:
                if url in seen:
                    self._faults.append(f"--initial-cluster: {url} is given twice")
                seen.add(url)
            if urls:
                members[member_id(tuple(urls), token)] = InitialMember(member, tuple(sorted(urls)))
        if name not in urls_of:
            self._faults.append(f"--initial-cluster has no member called {name}, which is --name")
        elif sorted(urls_of[name]) != sorted(advertised):
            self._faults.append(
                f"--initial-cluster gives {name} the URLs {','.join(urls_of[name])}, but "
                f"--initial-advertise-peer-urls are {','.join(advertised)}"
            )
        assert NO_NODE not in members
        return members


def _host(url: str) -> str:
    return address_of(url).rpartition(":")[0].strip("[]")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
