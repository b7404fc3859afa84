"""`python -m quorumlog.cluster_faults COMMAND [ARGUMENT]... -- [NUMBER STATE PEER_URL DATA_DIR]...`

What cluster.sh does about the links between its nodes. COMMAND and its arguments are those of cluster.sh:
partition GROUPS, isolate I, cut I J, slow I MS, flaky I PERCENT, heal, faults; and `words`, for its table: a
line "NUMBER WORDS" for each node. STATE is running, paused or stopped.

Both ends of a link are told of a cut. So it holds also while one of them could not be told, or was started
again, which comes up without any.

Exit status 0 if all that run were told, 1 if one was not, 2 if the command makes no sense.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from quorumlog.fault_client import AskError, NobodyThere, Question, counted, words

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
    print("cut: " + " | ".join(" ".join(f"n{number}" for number in group) for group in groups))
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
    if not re.fullmatch(r"[0-9]{1,6}", arguments[1], re.ASCII):
        raise Misuse(f"{arguments[1]!r} is no number of milliseconds")
    return {own: set_of({"peers": "all", "delay_ms": int(arguments[1])})}


def flaky(arguments: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    own = number_of(arguments[0], nodes)
    text = arguments[1].removesuffix("%")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text, re.ASCII):
        raise Misuse(f"{arguments[1]!r} is no number of percent")
    return {own: set_of({"peers": "all", "loss_percent": float(text)})}


def heal(_: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    return {number: {"op": "heal"} for number in nodes}


def show(_: Sequence[str], nodes: Nodes) -> dict[str, Request]:
    return {number: {"op": "show"} for number in nodes}


COMMANDS: Final[Mapping[str, tuple[str, Callable[[Sequence[str], Nodes], dict[str, Request]]]]] = {
    "partition": ('GROUPS, e.g. "1,2|3,4,5"', partition),
    "isolate": ("NODE", isolate),
    "cut": ("FROM TO", cut),
    "slow": ("NODE MILLISECONDS", slow),
    "flaky": ("NODE PERCENT", flaky),
    "heal": ("", heal),
    "faults": ("", show),
    "words": ("", show),
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


def tell(command: str, requests: Mapping[str, Request], nodes: Nodes) -> int:
    """Ask, and print a line for each node. Return the exit status."""
    answers = ask(requests, nodes)
    status = 0
    for number in sorted(requests):
        answer, state = answers.get(number), nodes[number].state
        if isinstance(answer, dict) and answer.get("ok"):
            said = words(answer["links"])
            print(
                f"n{number}  {said}" + (f"  ({counted(answer['counters'])})" if command == "faults" else "")
            )
        elif isinstance(answer, dict | AskError):
            reason = answer if isinstance(answer, AskError) else answer.get("error")
            print(f"cluster.sh: n{number} could not be told: {reason}", file=sys.stderr)
            status = 1
        elif state == "paused":
            print(f"cluster.sh: n{number} is paused, and keeps what it has", file=sys.stderr)
            status = 1
        else:
            print(f"n{number}  {state}: without faults of its own when it starts")
    return status


def print_words(requests: Mapping[str, Request], nodes: Nodes) -> int:
    answers = ask(requests, nodes)
    for number in nodes:
        answer = answers.get(number)
        told = isinstance(answer, dict) and answer.get("ok")
        print(number, words(answer["links"]) if told and isinstance(answer, dict) else "-")
    return 0


def main(arguments: Sequence[str]) -> int:
    end = list(arguments).index("--")
    (command, *given), rest = arguments[:end], arguments[end + 1 :]
    nodes = {row[0]: Node(*row) for row in zip(*[iter(rest)] * 4, strict=True)}
    takes, make = COMMANDS[command]
    try:
        if len(given) != (1 if command == "partition" else len(takes.split())):
            raise Misuse(f"{command} takes {takes or 'nothing'}")
        requests = make(given, nodes)
    except Misuse as error:
        print(f"cluster.sh: {error} (see ./cluster.sh help)", file=sys.stderr)
        return 2
    return print_words(requests, nodes) if command == "words" else tell(command, requests, nodes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
