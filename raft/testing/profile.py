"""What one seed does to its cluster: swarm testing.

Groce et al., "Swarm Testing" (ISSTA 2012): a run with every fault switched on at a medium rate
hides bugs, since faults undo each other: a cluster that is cut all the time never commits what a crash
could then lose. So each seed draws a random subset of the faults, and how hard each one hits.

Rates are given as the mean pause between two faults, in ticks; 0 switches the fault off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from raft.testing.clock import TICK, Time
from raft.testing.weather import FAIR, WeatherSettings, draw_lasting, draw_weather

WEATHER_SHARE = 0.4
"""How many of the seeds have weather besides their faults (weather.py)."""

LOST_DATA_SHARE = 0.3
"""In how many of the seeds whose members do not change disks lose what was synced (lost_data.py)."""

ACKS_SHARE = 0.25
"""Of the seeds that have ack policies (acks.py)."""

LASTING_SHARE = 0.6
"""In how many of them faults stop for a quorum only (calm.py)."""


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """How links behave. Probabilities are per message."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_min: Time = 10
    delay_max: Time = 100
    slow: float = 0.0
    """Probability of a message that takes up to `slow_max` instead: it arrives in another term."""
    slow_max: Time = 0
    in_order: bool = True
    """True: a link delivers in the order of sending, as a TCP stream does. False: it reorders."""
    cut_in_flight: bool = True
    """True: a partition also loses what is on its way."""

    def calm(self) -> NetworkFaults:
        """Return the same links without faults, for the liveness phase."""
        return NetworkFaults(delay_min=self.delay_min, delay_max=self.delay_max)


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What is drawn of raft.core.config.Config."""

    election_timeout_ticks: int = 10
    heartbeat_ticks: int = 1
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 64
    uncommitted_bytes_max: int = 64 << 20
    apply_bytes_max: int = 1 << 20
    apply_inflight_bytes_max: int = 8 << 20
    pre_vote: bool = True
    check_quorum: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """How long logs are kept, and what befalls snapshots on their way."""

    segment_bytes: int = 8 * 1024
    flush_share: float = 0.1
    """Probability that a machine flushes after it has applied something."""
    compacts: bool = False
    log_bytes_max: int = 0
    crash_at_step: float = 0.0
    """Probability of a crash after each step of the install of a snapshot; a tenth of it after a flush, a
    compaction, or a piece that came in."""
    lose_state: float = 0.0
    """Probability that a restarted node whose log begins late finds no state."""
    chunk_bytes: int = 8
    """Of the simulator's own machine: 8 makes many pieces of a state of some keys, 100 one."""
    piece_delay_max: Time = 0
    """How long a piece may take besides the links' own delay: a snapshot can be overtaken."""
    break_piece: float = 0.0
    """Probability that the connection breaks at a piece."""
    keep_ticks_max: float = 0.0
    """How long what was sent, and what was received, is kept after a break."""
    send_again: float = 0.0
    """Probability that a snapshot is sent once more, later, and wanted by nobody."""
    unasked_ticks: float = 0.0
    """Pause between snapshots that some node sends to some other, wanted or not: a core must be able to
    judge whatever comes, from whom it comes."""
    looks_at_header: bool = True
    """A snapshot that is not needed is refused before it is sent. If not, only the core can refuse it."""


@dataclass(frozen=True, slots=True)
class MembershipSettings:
    """What the operator does."""

    spares: int = 0
    """Machines that may become members, besides the first voters. None comes back once it was removed."""
    change_ticks: float = 0.0
    """Pause between wishes for another membership."""
    transfer_ticks: float = 0.0
    """Pause between wishes for another leader."""
    learners_max: int = 1
    explicit: float = 0.0
    """Probability that a joint configuration is to be left by hand."""
    lax: float = 0.0
    """Probability that a change is to be made though a quorum may be lost."""
    join_ticks_max: float = 0.0
    """How long after it was added a member is started."""
    linger_ticks_max: float = 0.0
    """How long a removed member goes on."""

    @property
    def is_fixed(self) -> bool:
        return not self.change_ticks and not self.transfer_ticks


@dataclass(frozen=True, slots=True)
class AckFaults:
    """What is done to the ack policy (acks.py)."""

    change_ticks: float = 0.0
    """Pause between wishes for another policy, or other labels."""
    interest_ticks: float = 0.0
    """Pause between questions for what members have."""
    for_good: bool = False
    """The first policy that is set stays, with before_apply."""
    replicas: int = 0
    """How many others that asks for; 0 for all."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that a seed decides before its first step."""

    voters: int
    core: CoreSettings
    network: NetworkFaults
    codec: bool
    """Messages pass through the wire format."""
    batching: float
    """Probability that a node gathers inputs for a moment before it takes a Ready."""
    clock_skew: float
    """Ticks of a node are up to this fraction longer than virtual ones, each node's by its own."""
    write_delay_max: Time
    apply_delay_max: Time
    crash_ticks: float
    crash_all: float
    """Probability that a crash takes every node at once."""
    crash_in_write: float
    """Probability that a crash strikes in the middle of the node's next disk operations."""
    crash_at_moment: float
    """Probability of a crash shortly after a vote, an election or a commit: where bugs live."""
    cut_at_moment: float
    """Probability that a node is cut off shortly after such a moment."""
    down_ticks_max: float
    keep_state: float
    """Probability that a restarted node finds the state that its machine last flushed."""
    partition_ticks: float
    partition_length_ticks: float
    pause_ticks: float
    pause_length_ticks: float
    slow_disk_ticks: float
    disk_error_ticks: float
    """Pause between writes or syncs that fail, which ends the node's process."""
    nudge_ticks: float
    """Pause between campaigns that are started by hand."""
    clients: int
    keys: int
    think_ticks_max: float
    timeout_ticks: float
    read_share: float
    compare_share: float
    padding_bytes_max: int
    snapshots: SnapshotSettings = SnapshotSettings()
    membership: MembershipSettings = MembershipSettings()
    weather: WeatherSettings = FAIR
    refusals: bool = True
    """Members may be told that nobody listens somewhere (refusals.py)."""
    lose_data: float = 0.0
    """Probability that a node which starts has lost the end of its log (lost_data.py)."""
    acks: AckFaults = AckFaults()


def draw_profile(random: Random) -> Profile:
    """Draw a profile. Uses `random` a fixed way, so that a seed means the same run for ever
    on one commit."""

    def rarely(probability: float, low: float, high: float) -> float:
        """A fault that only some seeds have, at a rate that differs by orders of magnitude."""
        on, size = random.random() < probability, random.random()
        return low * (high / low) ** size if on else 0.0

    profile = Profile(
        voters=random.choices((1, 2, 3, 4, 5), weights=(2, 2, 50, 4, 42))[0],
        core=_draw_core(random),
        network=_draw_network(random),
        codec=random.random() < 0.5,
        batching=random.choice((0.0, 0.0, 0.3, 0.9)),
        clock_skew=rarely(0.4, 0.01, 0.3),
        write_delay_max=int(TICK * random.choice((0.02, 0.1, 0.5, 2.0))),
        apply_delay_max=int(TICK * random.choice((0.01, 0.05, 0.5, 3.0))),
        crash_ticks=rarely(0.75, 8, 150),
        crash_all=rarely(0.5, 0.02, 0.4),
        crash_in_write=rarely(0.6, 0.1, 0.8),
        crash_at_moment=rarely(0.5, 0.01, 0.3),
        cut_at_moment=rarely(0.4, 0.01, 0.3),
        down_ticks_max=random.choice((0.2, 2.0, 10.0, 40.0)),
        keep_state=random.choice((0.0, 0.5, 1.0)),
        partition_ticks=rarely(0.65, 8, 100),
        partition_length_ticks=random.choice((4.0, 20.0, 80.0)),
        pause_ticks=rarely(0.35, 15, 150),
        pause_length_ticks=random.choice((2.0, 15.0, 40.0)),
        slow_disk_ticks=rarely(0.3, 20, 150),
        disk_error_ticks=rarely(0.25, 15, 150),
        nudge_ticks=rarely(0.35, 10, 100),
        clients=random.choice((1, 2, 3, 4, 6)),
        keys=random.choice((1, 2, 3)),
        think_ticks_max=random.choice((0.3, 1.0, 3.0, 8.0)),
        timeout_ticks=random.choice((6.0, 20.0, 60.0)),
        read_share=random.choice((0.2, 0.4, 0.6)),
        compare_share=random.choice((0.0, 0.2, 0.4)),
        padding_bytes_max=random.choice((0, 0, 40, 400)),
    )
    kind = random.random()
    if kind < 0.18:
        profile = _leaders_die_young(profile, random)
    elif kind < 0.36:
        profile = _old_leaders_linger(profile, random)
    elif kind < 0.46:
        profile = _voters_come_back(profile, random)
    profile = replace(profile, snapshots=_draw_snapshots(random))
    if kind >= 0.80:
        profile = draw_snapshot_weather(profile, random)
    elif kind >= 0.75:
        profile = _logs_grow_apart(profile, random)
    elif kind >= 0.71:
        profile = _states_are_lost(profile, random)
    # Last, so that a run in which nobody changes the members is what it was before anybody could.
    if random.random() < 0.5:
        profile = replace(profile, membership=_draw_membership(random))
        weather = random.random()
        if weather < 0.25:
            profile = _changes_meet(profile, random)
        elif weather < 0.75:
            profile = _changes_succeed(profile, random)
    if random.random() < WEATHER_SHARE:
        profile = replace(profile, weather=draw_weather(random))
    if random.random() < LASTING_SHARE:
        profile = replace(profile, weather=replace(profile.weather, lasting=draw_lasting(random)))
    if profile.membership.is_fixed and random.random() < LOST_DATA_SHARE:
        profile = disks_lose_data(profile, random)
    return replace(profile, acks=draw_acks(random)) if random.random() < ACKS_SHARE else profile


def draw_acks(random: Random) -> AckFaults:
    return AckFaults(
        change_ticks=random.choice((10.0, 30.0, 100.0)),
        interest_ticks=random.choice((0.0, 10.0)),
        for_good=random.random() < 0.5,
    )


def disks_lose_data(profile: Profile, random: Random) -> Profile:
    """What is lost shows when others are down too, or are cut off, or come back."""
    lose_data, crash_ticks = random.choice((0.2, 0.5, 0.9)), random.choice((15.0, 40.0))
    # States are lost with the ends of logs. A log of no length at all is cut under each snapshot that is on
    # its way, so that one who needs the log behind it, too, would need another one for ever.
    snapshots = replace(profile.snapshots, log_bytes_max=max(profile.snapshots.log_bytes_max, 2000))
    return replace(
        profile, lose_data=lose_data, crash_ticks=profile.crash_ticks or crash_ticks, snapshots=snapshots
    )


def _leaders_die_young(profile: Profile, random: Random) -> Profile:
    """Figure 8 weather: leaders are struck right after they are elected or have committed,
    and entries travel one by one, so that tails of many terms meet."""
    core = replace(
        profile.core,
        election_timeout_ticks=6,
        heartbeat_ticks=1,
        append_bytes_max=1,
        inflight_messages_max=random.choice((1, 2)),
    )
    network = replace(profile.network, delay_min=100, delay_max=800, slow=0.0, drop=0.0, cut_in_flight=True)
    return replace(
        profile,
        voters=random.choice((3, 5)),
        core=core,
        network=network,
        crash_ticks=0.0,
        crash_at_moment=random.choice((0.0, 0.0, 0.1)),
        cut_at_moment=random.choice((0.3, 0.5, 0.7)),
        partition_ticks=0.0,
        partition_length_ticks=40.0,
        down_ticks_max=random.choice((2.0, 15.0)),
        pause_ticks=0.0,
        write_delay_max=TICK // 10,
        think_ticks_max=3.0,
    )


def _old_leaders_linger(profile: Profile, random: Random) -> Profile:
    """Stale-read weather: leaders are cut off for long and do not notice, and clients stay with them."""
    core = replace(profile.core, check_quorum=random.random() < 0.2, election_timeout_ticks=6)
    return replace(
        profile,
        voters=random.choice((3, 5)),
        core=core,
        network=replace(profile.network, delay_max=min(profile.network.delay_max, 800)),
        crash_ticks=0.0,
        crash_at_moment=0.0,
        partition_ticks=random.choice((20.0, 40.0)),
        partition_length_ticks=80.0,
        clients=6,
        keys=1,
        think_ticks_max=3.0,
        timeout_ticks=20.0,
        read_share=0.5,
    )


def _voters_come_back(profile: Profile, random: Random) -> Profile:
    """Double-vote weather: many candidates in one term, and voters that crash after the vote and are
    back before the election is over."""
    core = replace(profile.core, pre_vote=False, check_quorum=False, election_timeout_ticks=10)
    return replace(
        profile,
        voters=random.choice((3, 5)),
        core=core,
        network=replace(profile.network, delay_min=100, delay_max=random.choice((800, 2500))),
        crash_at_moment=random.choice((0.1, 0.4)),
        cut_at_moment=random.choice((0.0, 0.3)),
        down_ticks_max=random.choice((0.2, 1.0)),
        write_delay_max=TICK // 20,
        nudge_ticks=random.choice((2.0, 5.0)),
    )


def draw_snapshot_weather(profile: Profile, random: Random) -> Profile:
    """Snapshot weather: logs of a few entries, and nodes that miss many more than these."""
    core = replace(
        profile.core,
        election_timeout_ticks=random.choice((6, 10)),
        # Without it a leader that is cut off goes on, and its log grows apart.
        check_quorum=random.random() < 0.5,
    )
    # Messages that are late or lost where snapshots, in streams of their own, are not.
    network = replace(
        profile.network,
        delay_min=10,
        delay_max=random.choice((100, 500)),
        drop=random.choice((0.0, 0.2)),
        slow=random.choice((0.0, 0.3)),
        slow_max=5 * TICK,
    )
    snapshots = replace(
        _draw_snapshots(random),
        compacts=True,
        segment_bytes=1024,
        log_bytes_max=random.choice((0, 0, 2000)),
        unasked_ticks=random.choice((0.0, 3.0)),
        lose_state=random.choice((0.0, 0.1, 0.5, 0.5)),
        flush_share=random.choice((0.3, 1.0)),
    )
    return replace(
        profile,
        voters=random.choice((3, 3, 5)),
        core=core,
        network=network,
        write_delay_max=random.choice((TICK // 10, TICK // 10, 2 * TICK)),
        apply_delay_max=TICK // 10,
        crash_ticks=random.choice((0.0, 30.0)),
        crash_at_moment=0.0,
        cut_at_moment=0.0,
        partition_ticks=random.choice((15.0, 30.0)),
        partition_length_ticks=random.choice((15.0, 40.0)),
        down_ticks_max=random.choice((2.0, 30.0)),
        clients=random.choice((3, 6)),
        think_ticks_max=random.choice((0.3, 1.0)),
        timeout_ticks=random.choice((6.0, 20.0, 200.0, 200.0)),
        nudge_ticks=random.choice((0.0, 8.0, 15.0)),
        read_share=random.choice((0.2, 0.4)),
        padding_bytes_max=random.choice((40, 400)),
        snapshots=snapshots,
    )


def _logs_grow_apart(profile: Profile, random: Random) -> Profile:
    """Conflict weather: a leader that is cut off appends on and on, and the first that it hears of its
    successor is a snapshot that ends in the middle of its log."""
    core = replace(profile.core, election_timeout_ticks=6, check_quorum=False)
    network = replace(
        profile.network, delay_min=10, delay_max=60, drop=0.0, slow=0.4, slow_max=4 * TICK, in_order=True
    )
    snapshots = replace(
        profile.snapshots, chunk_bytes=100, piece_delay_max=1, break_piece=0.0, unasked_ticks=2.0
    )
    return replace(
        profile,
        voters=random.choice((3, 5)),
        core=core,
        network=network,
        write_delay_max=TICK // 20,
        apply_delay_max=TICK // 20,
        crash_ticks=0.0,
        crash_at_moment=0.0,
        cut_at_moment=random.choice((0.05, 0.2)),
        partition_ticks=0.0,
        partition_length_ticks=30.0,
        pause_ticks=0.0,
        clients=6,
        think_ticks_max=0.3,
        timeout_ticks=3.0,
        read_share=0.1,
        snapshots=snapshots,
    )


def _states_are_lost(profile: Profile, random: Random) -> Profile:
    """Lost states, and logs on disks so slow that a state comes in before its entries are durable."""
    profile = draw_snapshot_weather(profile, random)
    snapshots = replace(
        profile.snapshots,
        lose_state=0.5,
        crash_at_step=random.choice((0.0, 0.1)),
        chunk_bytes=100,
        piece_delay_max=1,
        break_piece=0.0,
        looks_at_header=True,
    )
    return replace(profile, crash_ticks=20.0, write_delay_max=2 * TICK, snapshots=snapshots)


def _changes_meet(profile: Profile, random: Random) -> Profile:
    """Errata weather (trap 41): of an even number of voters, a leader that has just appended a change is cut
    off with it, and the next one is asked for another."""
    core = replace(profile.core, election_timeout_ticks=6, heartbeat_ticks=1)
    network = replace(
        profile.network,
        delay_min=10,
        delay_max=random.choice((100, 800)),
        drop=0.0,
        slow=0.0,
        cut_in_flight=True,
    )
    membership = replace(
        profile.membership, change_ticks=random.choice((2.0, 4.0)), transfer_ticks=0.0, explicit=0.0, lax=1.0
    )
    return replace(
        profile,
        voters=random.choice((2, 4, 4, 4)),
        core=core,
        network=network,
        crash_ticks=0.0,
        crash_at_moment=0.0,
        cut_at_moment=random.choice((0.2, 0.4)),
        # One cut follows the other with nothing mended between.
        partition_ticks=random.choice((10.0, 20.0)),
        partition_length_ticks=40.0,
        pause_ticks=0.0,
        slow_disk_ticks=0.0,
        write_delay_max=TICK // 10,
        clients=1,
        think_ticks_max=8.0,
        timeout_ticks=20.0,
        membership=membership,
    )


def _changes_succeed(profile: Profile, random: Random) -> Profile:
    """Weather in which many changes come to their end: clients leave time for them, and a snapshot is soon
    with the member that joins."""
    snapshots = replace(
        profile.snapshots,
        chunk_bytes=100,
        piece_delay_max=min(profile.snapshots.piece_delay_max, TICK),
        break_piece=min(profile.snapshots.break_piece, 0.05),
    )
    return replace(
        profile,
        clients=random.choice((1, 2)),
        think_ticks_max=random.choice((3.0, 8.0)),
        snapshots=snapshots,
        membership=replace(profile.membership, change_ticks=random.choice((3.0, 8.0))),
    )


def _draw_membership(random: Random) -> MembershipSettings:
    return MembershipSettings(
        spares=random.choice((1, 4, 8, 16)),
        change_ticks=random.choice((4.0, 10.0, 30.0)),
        transfer_ticks=random.choice((0.0, 0.0, 10.0, 40.0)),
        learners_max=random.choice((1, 1, 3)),
        explicit=random.choice((0.0, 0.2, 0.8)),
        lax=random.choice((0.0, 0.5, 1.0)),
        join_ticks_max=random.choice((1.0, 10.0, 40.0)),
        linger_ticks_max=random.choice((0.0, 20.0, 100.0)),
    )


def _draw_snapshots(random: Random) -> SnapshotSettings:
    return SnapshotSettings(
        segment_bytes=random.choice((1024, 2048, 8 * 1024)),
        flush_share=random.choice((0.1, 0.3, 1.0)),
        compacts=random.random() < 0.6,
        log_bytes_max=random.choice((0, 0, 4 * 1024, 24 * 1024)),
        crash_at_step=random.choice((0.0, 0.0, 0.05, 0.2)),
        lose_state=random.choice((0.0, 0.0, 0.1, 0.5)),
        chunk_bytes=random.choice((8, 100)),
        piece_delay_max=random.choice((1, TICK // 10, TICK, 6 * TICK)),
        break_piece=random.choice((0.0, 0.0, 0.05, 0.3)),
        keep_ticks_max=random.choice((0.0, 10.0, 40.0)),
        send_again=random.choice((0.0, 0.0, 0.3)),
        unasked_ticks=random.choice((0.0, 0.0, 3.0, 20.0)),
        looks_at_header=random.random() < 0.5,
    )


def _draw_core(random: Random) -> CoreSettings:
    small_appends = random.random() < 0.5
    pre_vote, check_quorum = random.choices(
        ((True, True), (True, False), (False, True), (False, False)), weights=(60, 10, 10, 20)
    )[0]
    return CoreSettings(
        election_timeout_ticks=random.choice((6, 10, 10, 16)),
        heartbeat_ticks=random.choice((1, 1, 2)),
        # One entry a message: without this a new leader's first append carries the old entries and its
        # own no-op together, and Figure 8 can never happen.
        append_bytes_max=random.choice((1, 1, 120, 600)) if small_appends else 1 << 20,
        inflight_messages_max=random.choice((1, 2, 4, 64)),
        uncommitted_bytes_max=random.choice((400, 2000, 64 << 20, 64 << 20)),
        apply_bytes_max=random.choice((1, 500, 1 << 20)),
        apply_inflight_bytes_max=random.choice((500, 8 << 20)),
        pre_vote=pre_vote,
        check_quorum=check_quorum,
    )


def _draw_network(random: Random) -> NetworkFaults:
    low, high = random.choice(((5, 20), (10, 100), (50, 800), (200, 2500)))
    return NetworkFaults(
        drop=random.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
        duplicate=random.choice((0.0, 0.0, 0.02, 0.2)),
        delay_min=low,
        delay_max=high,
        slow=random.choice((0.0, 0.0, 0.02, 0.1)),
        slow_max=int(TICK * random.choice((5, 30))),
        in_order=random.random() < 0.4,
        cut_in_flight=random.random() < 0.5,
    )
