"""`python -m quorumlog.cluster_faults COMMAND [ARGUMENT]... -- [NUMBER STATE PEER_URL DATA_DIR]...`

What cluster.sh does about the links between its nodes. COMMAND and its arguments are those of cluster.sh:
partition GROUPS, isolate I, cut I J, slow I MS, flaky I PERCENT, heal, faults; and `words`, for its table: a
line "NUMBER WORDS" for each node. STATE is running, paused or stopped.

Both ends of a link are told of a cut. So it holds also while one of them could not be told, or was started
again, which comes up without any.

Exit status 0 if all that run were told, 1 if one was not, 2 if the command makes no sense (then nobody was),
and 6 or 141, as of `quorumlog`, if all were told and only the output could not be written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from quorumlog.commands.exits import Exit, complain
from quorumlog.commands.output import Output, OutputError
from quorumlog.commands.runner import report_output_failure
from quorumlog.fault_client import (
    DELAY_MS_MAX,
    LOSS_PERCENT_MAX,
    AskError,
    NobodyThere,
    Question,
    counted,
    delay_ms,
    loss_percent,
    words,
)
from quorumlog.streams import occupy_standard_streams

TIMEOUT_S: Final = 3.0

Request: TypeAlias = dict[str, Any]


class Misuse(Exception):
    """The arguments make no sense. The text is one line for people."""


class Node(NamedTuple):
    number: str
    state: str
    peer_url: str
    data_dir: str


Nodes: TypeAlias = Mapping[str, Node]


def set_of(*links: dict[str, Any]) -> Request:
    return {"op": "set", "links": list(links)}


def groups_of(text: str, nodes: Nodes) -> list[list[str]]:
    """Return the groups of "1,2|3,4,5". Nodes that are not named are one more group. Raises Misuse."""
    groups = [[number_of(part, nodes) for part in group.split(",")] for group in text.split("|")]
    named = [number for group in groups for number in group]
    for number in named:
        if named.count(number) > 1:
            raise Misuse(f"node {number} stands twice in {text!r}")
    rest = [number for number in nodes if number not in named]
    groups += [rest] if rest else []
    if len(groups) < 2:
        raise Misuse(f"{text!r} is one group of all nodes: nothing to cut")
    return groups


def number_of(text: str, nodes: Nodes) -> str:
    number = text.strip().removeprefix("n")
    if number not in nodes:
        raise Misuse(f"no node {text!r}: this cluster has {' '.join(nodes)}")
    return number


def partition(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    """Cut what joins the groups, and only that: other cuts are lifted."""
    groups = groups_of(arguments[0], nodes)
    requests = {}
    for group in groups:
        others = [nodes[number].peer_url for number in nodes if number not in group]
        for number in group:
            requests[number] = set_of({"peers": "all", "cut": False}, {"peers": others, "cut": True})
    return requests


def isolate(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    own = number_of(arguments[0], nodes)
    told = set_of({"peers": [nodes[own].peer_url], "cut": True})
    return {number: told for number in nodes} | {own: set_of({"peers": "all", "cut": True})}


def cut(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    """One way: nothing goes from the first node to the second one."""
    sender, to = (number_of(text, nodes) for text in arguments)
    if sender == to:
        raise Misuse("a node has no link to itself")
    return {
        sender: set_of({"peers": [nodes[to].peer_url], "direction": "out", "cut": True}),
        to: set_of({"peers": [nodes[sender].peer_url], "direction": "in", "cut": True}),
    }


def slow(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    own = number_of(arguments[0], nodes)
    try:
        return {own: set_of({"peers": "all", "delay_ms": delay_ms(arguments[1])})}
    except ValueError as error:
        raise Misuse(str(error)) from None


def flaky(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    own = number_of(arguments[0], nodes)
    try:
        return {own: set_of({"peers": "all", "loss_percent": loss_percent(arguments[1])})}
    except ValueError as error:
        raise Misuse(str(error)) from None


def heal(_: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    return {number: {"op": "heal"} for number in nodes}


def show(_: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    return {number: {"op": "show"} for number in nodes}


class Command(NamedTuple):
    size: int
    """How many arguments it takes."""
    takes: str
    """Which ones, for people."""
    make: Callable[[Sequence[str], Nodes], dict[str, Request]]
    """What each node is asked. Raises Misuse."""


COMMANDS: Final[Mapping[str, Command]] = {
    "partition": Command(1, 'GROUPS, e.g. "1,2|3,4,5"', partition),
    "isolate": Command(1, "NODE", isolate),
    "cut": Command(2, "FROM TO", cut),
    "slow": Command(2, f"NODE MILLISECONDS (0 to {DELAY_MS_MAX})", slow),
    "flaky": Command(2, f"NODE PERCENT (0 to {LOSS_PERCENT_MAX})", flaky),
    "heal": Command(0, "nothing", heal),
    "faults": Command(0, "nothing", show),
    "words": Command(0, "nothing", show),
}


def ask(requests: Mapping[str, Request], nodes: Nodes) -> dict[str, dict[str, Any] | AskError]:
    """Ask all that run, at once; return by number what each has answered."""
    questions: dict[str, Question] = {}
    answers: dict[str, dict[str, Any] | AskError] = {}
    for number, request in requests.items():
        if nodes[number].state == "running":
            try:
                questions[number] = Question(nodes[number].data_dir, request, TIMEOUT_S)
            except NobodyThere:
                answers[number] = NobodyThere("it does not offer faults yet, or was started without them")
    for number, question in questions.items():
        try:
            answers[number] = question.answer()
        except AskError as error:
            answers[number] = error
    return answers


class Report:
    """What is printed when all have been asked, line by line in its order."""

    def __init__(self) -> None:
        self._output = Output("simple", is_hex=False)
        self._failure: OutputError | None = None
        self._was_refused = False

    def say(self, text: str) -> None:
        """On standard output. If that fails, what is to be complained of is told all the same."""
        if self._failure is None:
            try:
                self._output.line(text)
                self._output.flush()  # complaints come between
            except OutputError as error:
                self._failure = error

    def refuse(self, text: str) -> None:
        complain("cluster.sh", text)
        self._was_refused = True

    def end(self) -> int:
        """Return the exit status."""
        status = Exit.OK if self._failure is None else report_output_failure("cluster.sh", self._failure)
        return Exit.REFUSED if self._was_refused else status


def tell(
    command: str, given: Sequence[str], requests: Mapping[str, Request], nodes: Nodes, report: Report
) -> None:
    """Ask, and only then report: whoever reads may be gone, or a disk full."""
    answers = ask(requests, nodes)
    if command == "partition":
        groups = groups_of(given[0], nodes)
        report.say("cut: " + " | ".join(" ".join(f"n{number}" for number in group) for group in groups))
    for number in sorted(requests):
        answer, state = answers.get(number), nodes[number].state
        if isinstance(answer, dict) and answer.get("ok"):
            counters = f"  ({counted(answer['counters'])})" if command == "faults" else ""
            report.say(f"n{number}  {words(answer['links'])}{counters}")
        elif isinstance(answer, dict | AskError):
            reason = answer if isinstance(answer, AskError) else answer.get("error")
            report.refuse(f"n{number} could not be {'asked' if command == 'faults' else 'told'}: {reason}")
        elif state == "paused":
            report.refuse(f"n{number} is paused, and keeps what it has")
        else:
            report.say(f"n{number}  {state}: without faults of its own when it starts")


def tell_words(requests: Mapping[str, Request], nodes: Nodes, report: Report) -> None:
    answers = ask(requests, nodes)
    for number in nodes:
        answer = answers.get(number)
        told = isinstance(answer, dict) and answer.get("ok")
        report.say(f"{number} {words(answer['links']) if told and isinstance(answer, dict) else '-'}")


def main(arguments: Sequence[str]) -> int:
    occupy_standard_streams()
    # The last one: a user may give one too.
    end = len(arguments) - 1 - list(reversed(arguments)).index("--")
    (name, *given), rest = arguments[:end], arguments[end + 1 :]
    nodes = {row[0]: Node(*row) for row in zip(*[iter(rest)] * 4, strict=True)}
    command = COMMANDS[name]
    report = Report()
    try:
        if len(given) != command.size:
            raise Misuse(f"{name} takes {command.takes}")
        requests = command.make(given, nodes)
    except Misuse as error:
        complain("cluster.sh", f"{error} (see ./cluster.sh help)")
        return Exit.USAGE
    if name == "words":
        tell_words(requests, nodes, report)
    else:
        tell(name, given, requests, nodes, report)
    return report.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
