"""A small language for stories of a few nodes, in which every step is a line and leaves a trace.

A file is a header of `#` lines, then blocks: commands, `----`, the full output, an empty line. The
commands of a block run in order and their outputs follow one another. QUORUMLOG_REWRITE=1 writes the
outputs anew; the diff is then the review.

    nodes 3 [option=n ...]      new nodes 1..3 instead of all before; options of Config (pre_vote=0 ...)
      [spares=2] [learners=4]   4 and 5 are there too, and no members, or learners
    disk 2 terms=1,1,2 [term=5] [vote=1] [commit=2]   give a node this log (or: keep)
    campaign 1                  tick 2 [n=20]         timeout 2 15  (election timeout in ticks)
    propose 1 a b               read 2
    change 1 [add=4,5] [promote=4] [learner=6] [demote=2] [remove=3] [explicit] [not-strict]
    ack 1 2 [before] [degrade]  set the ack policy: so many others; timeout and hold in ticks; 0: off
      [timeout=5] [hold=10]
    label 1 2 zone=dr           label a member
    leave 1                     end a joint configuration that does not end by itself
    transfer 1 [3]              hand leadership over
    ready 1                     take one Ready: messages leave, the write and the entries to apply queue up
    sync 1 [n=2]                the log writer finishes its next append: what was held leaves
    apply 1                     the state machine finishes its next batch
    deliver 1->2 [n=1] [kind=Append] [skip=1] [drop|dup|keep] [last]
    deliver all                 messages under way, oldest first (keep: deliver, and keep a copy under way)
    stabilize [1 2 ..]          all of this until nothing is left to do
    tick-and-stabilize 1 [n=5]  that after each tick
    cut 1 2 | cut 1->2 | heal   what is sent over a cut link is lost
    crash 1 [lose-unsynced]     restart 1
    lose 1 [n=2]                1 is down, and loses the last entries of its disk
    compact 1 5                 drop 1's log through index 5
    send-snapshot 1->2          of 1's state as it is now; 1's shell says that it came
    unreachable 1 2             1's transport says that messages to 2 were lost
    refused 1 2                 1's transport says that nobody listens where 2 should
    stalled 1 [over]            1's shell says that a write of its log hangs; that it has returned
    log 1 | state | members | progress 1 | network | count
    quiet COMMAND               the same without its output; `count` says how many messages it took
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from raft.core.ack_types import AckPolicy, AckRequirement, OnTimeout, WaitPoint
from raft.core.config import Config
from raft.core.errors import RaftError
from raft.core.messages import Message
from raft.core.types import HardState, Membership, MembershipChange, NodeId
from tests.core.driver import FixedTimeout, MemoryLog, Node, terms_log
from tests.core.notation import show_entries, show_entry, show_message, show_ready, show_view

SEPARATOR = "----"
_ROUNDS_MAX = 400
_OPTIONS = {field.name: field.type for field in dataclasses.fields(Config)}


class ScenarioError(Exception):
    """The script is wrong."""


@dataclasses.dataclass
class Block:
    commands: list[str]
    expected: list[str]
    line: int


def parse(text: str) -> tuple[list[str], list[Block]]:
    """Return the header and the blocks."""
    header: list[str] = []
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if line.startswith("#") and not blocks:
            header.append(line)
        elif line.strip():
            blocks.append(_parse_block(number, line, lines))
    return header, blocks


def _parse_block(number: int, first: str, lines: Iterator[tuple[int, str]]) -> Block:
    commands = [first]
    for _, line in lines:
        if line == SEPARATOR:
            break
        commands.append(line)
    else:
        raise ScenarioError(f"line {number}: no {SEPARATOR}")
    expected = []
    for _, line in lines:
        if not line:
            break
        expected.append(line)
    return Block(commands, expected, number)


def rewrite(path: Path) -> str:
    """Return the file at `path` with the outputs that it has now."""
    header, blocks = parse(path.read_text())
    scenario = Scenario()
    parts = ["\n".join(header)]
    for block in blocks:
        parts.append("\n".join([*block.commands, SEPARATOR, *scenario.run_block(block)]))
    return "\n\n".join(parts) + "\n"


class Scenario:
    """The nodes, and the messages under way in the order in which they were sent."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, Node] = {}
        self.down: set[NodeId] = set()
        self.network: list[Message] = []
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.sent: Counter[str] = Counter()
        self.lines: list[str] = []

    def run_block(self, block: Block) -> list[str]:
        self.lines = []
        for command in block.commands:
            if command.startswith("#"):
                continue
            try:
                self._run(command.split())
            except (ValueError, KeyError, IndexError, ScenarioError) as error:
                raise ScenarioError(f"line {block.line}: `{command}`: {error!r}") from error
        return self.lines or ["ok"]

    def _run(self, words: list[str]) -> None:
        if words[0] == "quiet":
            before, self.lines = self.lines, []
            self._run(words[1:])
            self.lines = before
            return
        name, arguments = words[0].replace("-", "_"), words[1:]
        command: Callable[[list[str]], None] | None = getattr(self, f"do_{name}", None)
        if command is None:
            raise ScenarioError("unknown command")
        command(arguments)

    def _say(self, line: str) -> None:
        self.lines.append(line)

    def _live(self, word: str) -> Node:
        if int(word) in self.down:
            raise ScenarioError(f"node {word} is down")
        return self.nodes[int(word)]

    # Nodes

    def do_nodes(self, words: list[str]) -> None:
        learners = _list(words, "learners")
        options = {
            key: int(value)
            for key, value in (word.split("=") for word in words[1:])
            if key not in ("spares", "learners")
        }
        if not options.keys() <= _OPTIONS.keys():
            raise ScenarioError(f"no such option among {options}")
        # A new group on a new network.
        self.nodes, self.network, self.down, self.cuts = {}, [], set(), set()
        ids = range(1, int(words[0]) + 1)
        first = Membership(voters=frozenset(ids), learners=learners)
        for node_id in sorted({*ids, *learners, *range(1, len(ids) + _number(words, "spares", 0) + 1)}):
            self.nodes[node_id] = Node(
                node_id,
                first,
                options=options,
                random=FixedTimeout(node_id - 1),
            )

    def do_disk(self, words: list[str]) -> None:
        node = self.nodes[int(words[0])]
        values = dict(word.split("=") for word in words[1:] if word != "keep")
        terms = [int(term) for term in values.get("terms", "").split(",") if term]
        if "keep" in words:
            terms = [entry.term for entry in node.disk.list]
        else:
            node.disk = MemoryLog(terms_log(*terms))
        node.hard_state = HardState(
            int(values.get("term", max(terms, default=0))),
            int(values.get("vote", 0)),
            int(values.get("commit", 0)),
        )
        node.run = 0
        node.restart()

    def do_crash(self, words: list[str]) -> None:
        node = self._live(words[0])
        node.crash(0 if words[1:] == ["lose-unsynced"] else len(node.writes))
        self.down.add(node.node_id)

    def do_lose(self, words: list[str]) -> None:
        if int(words[0]) not in self.down:
            raise ScenarioError(f"node {words[0]} is not down")
        self.nodes[int(words[0])].lose(_number(words, "n", 1))

    def do_restart(self, words: list[str]) -> None:
        self.down.remove(int(words[0]))
        node = self.nodes[int(words[0])]
        node.restart()
        state = node.hard_state
        self._say(
            f"{node.node_id} back in T{state.term} vote={state.voted_for or '-'} "
            f"log={show_entries(node.disk.list)} commit={node.core.commit_index} "
            f"applied={node.core.applied_index}" + (" recovering" if node.recovering else "")
        )

    # Inputs

    def do_campaign(self, words: list[str]) -> None:
        self._live(words[0]).core.campaign()

    def do_timeout(self, words: list[str]) -> None:
        """Holds from the next draw on."""
        node = self.nodes[int(words[0])]
        assert isinstance(node.random, FixedTimeout)
        node.random.extra_ticks = int(words[1]) - node.config.election_timeout_ticks
        node.core._draw_election_deadline()

    def do_tick(self, words: list[str]) -> None:
        node = self._live(words[0])
        for _ in range(_number(words, "n", 1)):
            node.core.tick()

    def do_propose(self, words: list[str]) -> None:
        try:
            term, index, ticket = self._live(words[0]).core.propose([word.encode() for word in words[1:]])
        except RaftError as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            self._say(f"proposed in T{term} " + (f"at index {index}" if index else f"as ticket {ticket}"))

    def do_change(self, words: list[str]) -> None:
        change = MembershipChange(
            voters=_list(words, "add") | _list(words, "promote"),
            learners=_list(words, "learner") | _list(words, "demote"),
            removes=_list(words, "remove"),
            auto_leave="explicit" not in words,
            is_strict="not-strict" not in words,
        )
        self._change(self._live(words[0]), change)

    def do_ack(self, words: list[str]) -> None:
        node = self._live(words[0])
        policy = AckPolicy(
            AckRequirement(int(words[1])),
            wait_point=WaitPoint.BEFORE_APPLY if "before" in words else WaitPoint.AFTER_APPLY,
            on_timeout=OnTimeout.DEGRADE if "degrade" in words else OnTimeout.FAIL,
            wait_timeout_ms=_number(words, "timeout", 5) * node.config.tick_ms,
            recover_hold_ms=_number(words, "hold", 10) * node.config.tick_ms,
        )
        self._change(node, MembershipChange(ack=policy))

    def do_label(self, words: list[str]) -> None:
        labels = tuple(sorted((name, value) for name, value in (word.split("=") for word in words[2:])))
        self._change(self._live(words[0]), MembershipChange(labels=((int(words[1]), labels),)))

    def do_leave(self, words: list[str]) -> None:
        self._change(self._live(words[0]), MembershipChange(leaves=True))

    def _change(self, node: Node, change: MembershipChange) -> None:
        try:
            term, index, ticket = node.core.propose_change(change)
        except RaftError as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            self._say(f"change in T{term} " + (f"at index {index}" if index else f"as ticket {ticket}"))

    def do_transfer(self, words: list[str]) -> None:
        try:
            target = self._live(words[0]).core.transfer_leadership(*map(int, words[1:]))
        except RaftError as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            self._say(f"{words[0]} hands over to {target}")

    def do_compact(self, words: list[str]) -> None:
        node = self._live(words[0])
        node.compact(int(words[1]))
        self._say(f"{words[0]} log begins after {node.disk.before_index}@{node.disk.before_term}")

    def do_send_snapshot(self, words: list[str]) -> None:
        sender, to = (self._live(word) for word in words[0].split("->"))
        meta = sender.snapshot()
        is_wanted = to.offer(meta, sender.applied)
        self._say(
            f"{to.node_id} {'takes' if is_wanted else 'does not want'} a snapshot at {meta.index}@{meta.term}"
        )
        sender.core.snapshot_finished(to.node_id, meta.index)

    def do_read(self, words: list[str]) -> None:
        self._say(f"read {self._live(words[0]).core.read_index()} of node {words[0]}")

    def do_unreachable(self, words: list[str]) -> None:
        self._live(words[0]).core.report_unreachable(int(words[1]))

    def do_refused(self, words: list[str]) -> None:
        self._live(words[0]).core.leader_unreachable(int(words[1]))

    def do_stalled(self, words: list[str]) -> None:
        self._live(words[0]).core.log_stalled("over" not in words)

    # Effects

    def do_ready(self, words: list[str]) -> None:
        node = self._live(words[0])
        if not node.core.has_ready():
            self._say(f"{words[0]} has nothing to do")
            return
        ready = node.take_ready()
        self._say(f"{words[0]} ready:")
        for line in show_ready(ready):
            self._say(f"  {line}")
        for message in ready.messages:
            self._send(message)
        assert not node.core.has_ready() or ready.apply is not None, "a second Ready with nothing new"

    def do_sync(self, words: list[str]) -> None:
        node = self._live(words[0])
        for _ in range(_number(words, "n", 1)):
            if not node.writes:
                self._say(f"{words[0]} has nothing to write")
                return
            position = node.writes[0].done
            was_leader = node.leads
            replies = node.sync()
            self._say(
                f"{words[0]} synced through {position.last_index}@{position.last_term} (T{position.term})"
            )
            if node.leads and not was_leader:
                self._say(f"  {words[0]} now leads T{node.core.term}")
            for reply in replies:
                self._say(f"  send {show_message(reply)}")
                self._send(reply)

    def do_apply(self, words: list[str]) -> None:
        node = self._live(words[0])
        if node.applies:
            self._say(f"{words[0]} applied {show_entries(node.apply())}")
        else:
            self._say(f"{words[0]} has nothing to apply")

    # The network

    def _send(self, message: Message) -> None:
        self.sent[type(message).__name__] += 1
        if (message.sender, message.to) in self.cuts:
            self._say(f"  lost on the cut link {message.sender}->{message.to}")
        else:
            self.network.append(message)

    def do_cut(self, words: list[str]) -> None:
        for link in _links(words):
            self.cuts.add(link)
        self.network = [x for x in self.network if (x.sender, x.to) not in self.cuts]

    def do_heal(self, words: list[str]) -> None:
        self.cuts -= set(_links(words)) if words else set(self.cuts)

    def do_deliver(self, words: list[str]) -> None:
        chosen = self._choose(words)
        if not chosen:
            self._say("nothing to deliver")
        for message in chosen:
            if "keep" not in words:
                self.network = [x for x in self.network if x is not message]
            if "drop" in words:
                self._say(f"dropped {show_message(message)}")
                continue
            for _ in range(2 if "dup" in words else 1):
                self._deliver(message)

    def _choose(self, words: list[str]) -> list[Message]:
        chosen = list(self.network)
        if words[0] != "all":
            sender, to = (int(word) for word in words[0].split("->"))
            chosen = [x for x in chosen if (x.sender, x.to) == (sender, to)]
        for word in words[1:]:
            if word.startswith("kind="):
                chosen = [x for x in chosen if show_message(x).split()[1] == word[5:]]
        if "last" in words:
            chosen.reverse()
        skip = _number(words, "skip", 0)
        return chosen[skip : skip + _number(words, "n", len(chosen))]

    def _deliver(self, message: Message) -> None:
        if message.to in self.down:
            self._say(f"lost, {message.to} is down: {show_message(message)}")
            return
        self._say(f"deliver {show_message(message)}")
        self.nodes[message.to].core.step(message)

    def do_stabilize(self, words: list[str]) -> None:
        """Everyone in turn does all he can, then what is under way between them arrives."""
        chosen = [int(word) for word in words] or sorted(self.nodes)
        chosen = [node_id for node_id in chosen if node_id not in self.down]
        for _ in range(_ROUNDS_MAX):
            busy = False
            for node_id in chosen:
                busy |= self._work(self.nodes[node_id])
            arriving = [
                x for x in self.network if x.to in self.down or (x.to in chosen and x.sender in chosen)
            ]
            for message in arriving:
                self.network.remove(message)
                self._deliver(message)
            if not busy and not arriving:
                return
        raise ScenarioError("no end: the nodes never come to rest")

    def _work(self, node: Node) -> bool:
        word = [str(node.node_id)]
        busy = False
        while node.core.has_ready() or node.writes or node.applies:
            busy = True
            if node.core.has_ready():
                self.do_ready(word)
            elif node.writes:
                self.do_sync(word)
            else:
                self.do_apply(word)
        return busy

    def do_tick_and_stabilize(self, words: list[str]) -> None:
        for _ in range(_number(words, "n", 1)):
            for word in words:
                if "=" not in word and int(word) not in self.down:
                    self._live(word).core.tick()
            self.do_stabilize([])

    # Looking

    def do_log(self, words: list[str]) -> None:
        log = self._live(words[0]).core.log
        entries = log.entries(log.first_index, log.last_index + 1, 1 << 30)
        self._say(f"{words[0]} log: " + ", ".join(map(show_entry, entries)))

    def do_state(self, words: list[str]) -> None:
        for node_id, node in sorted(self.nodes.items()):
            if node_id in self.down:
                self._say(f"{node_id} down")
                continue
            s = node.core.status()
            self._say(
                f"{node_id} {s.role.value} T{s.term} vote={s.voted_for or '-'} leader={s.leader or '-'} "
                f"last={s.last_index} stable={s.stable_index} commit={s.commit_index} "
                f"applied={s.applied_index}" + (" recovering" if s.is_recovering else "")
            )

    def do_members(self, words: list[str]) -> None:
        for node_id, node in sorted(self.nodes.items()):
            if node_id not in self.down:
                self._say(f"{node_id} {show_view(node.core.membership)}")

    def do_progress(self, words: list[str]) -> None:
        leadership = self._live(words[0]).core._leading()
        for member, p in leadership.progress.items():
            if member != int(words[0]):
                self._say(
                    f"{member} {p.flow.value} match={p.match_index} next={p.next_index} "
                    f"inflight={p.inflights.count}{' paused' if p.paused else ''}"
                )

    def do_network(self, words: list[str]) -> None:
        for message in self.network:
            self._say(show_message(message))

    def do_count(self, words: list[str]) -> None:
        """How many messages of each kind were sent since the last count."""
        for name, count in sorted(self.sent.items()):
            self._say(f"{count} {name}")
        self.sent.clear()


def _list(words: list[str], key: str) -> frozenset[NodeId]:
    values = next((w.removeprefix(f"{key}=") for w in words if w.startswith(f"{key}=")), "")
    return frozenset(int(value) for value in values.split(",") if value)


def _number(words: list[str], key: str, default: int) -> int:
    return next((int(w.removeprefix(f"{key}=")) for w in words if w.startswith(f"{key}=")), default)


def _links(words: list[str]) -> list[tuple[NodeId, NodeId]]:
    if "->" in words[0]:
        sender, to = words[0].split("->")
        return [(int(sender), int(to))]
    first, *others = map(int, words)
    return [link for other in others for link in ((first, other), (other, first))]
