"""Commands on their way into the log: taken by the leader, forwarded to it by everybody else.

    propose --at the leader--> appended, or refused: in no log
    propose --elsewhere--> Propose --at the leader of that very term--> appended, or ProposeReply: in no log

There is no third end that the core would tell: a forwarded batch that is lost shows by an entry of a higher
term that is applied (messages.py, Propose).
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.acknowledging import Acknowledging
from raft.core.errors import (
    AcksMissing,
    DropReason,
    NotLeader,
    Overloaded,
    ProposalTooLarge,
    Transferring,
)
from raft.core.messages import Propose, ProposeReply
from raft.core.ready import Proposed, Role
from raft.core.types import ENTRY_OVERHEAD_BYTES, NO_NODE, EntryKind


class Proposing(Acknowledging):
    """A Machine that takes commands. `Raft` adds the messages."""

    def propose(self, payloads: Sequence[bytes]) -> Proposed:
        """Append commands if this node leads, else forward them to the leader, all or none.

        Raises NotLeader if no leader is known, Transferring while this node hands leadership over,
        AcksMissing if the ack policy lets nothing in, Overloaded if too much is uncommitted, ProposalTooLarge
        if one payload exceeds `command_bytes_max`. After any of these nothing was appended anywhere.
        """
        if not payloads:
            raise ValueError("no payloads")
        size_max = max(map(len, payloads))
        if size_max > self._config.command_bytes_max:
            raise ProposalTooLarge(
                f"a command of {size_max} bytes; the limit is {self._config.command_bytes_max}"
            )
        if self.role is Role.LEADER:
            if self._leading().transfer is not None:
                raise Transferring("leadership is being handed over")
            if self._refuses_commands:
                raise AcksMissing(
                    "too few members acknowledge, and the ack policy takes nothing new until they do"
                )
            if self._is_overloaded(payloads):
                raise Overloaded(
                    f"more than {self._config.uncommitted_bytes_max} bytes are waiting to be committed"
                )
            first = self._append_own([(EntryKind.COMMAND, payload) for payload in payloads])
            return Proposed(self.term, first, 0)
        if self.leader == NO_NODE:
            raise NotLeader
        self._ticket += 1
        self._messages.append(
            Propose(
                sender=self.node_id,
                to=self.leader,
                term=self.term,
                ticket=self._ticket,
                run_id=self.run_id,
                payloads=payloads,
            )
        )
        return Proposed(self.term, 0, self._ticket)

    def _is_overloaded(self, payloads: Sequence[bytes]) -> bool:
        waiting = self._leading().uncommitted_bytes
        size = sum(map(len, payloads)) + len(payloads) * ENTRY_OVERHEAD_BYTES
        # A batch larger than the whole limit may go when nothing waits: else it never could.
        return waiting > 0 and waiting + size > self._config.uncommitted_bytes_max

    def _step_propose(self, message: Propose) -> None:
        if not message.payloads or self._leading().is_repeated(message):
            return
        if max(map(len, message.payloads)) > self._config.command_bytes_max:
            self._refuse_proposal(message, DropReason.TOO_LARGE)
        elif self._leading().transfer is not None:
            self._refuse_proposal(message, DropReason.TRANSFERRING)
        elif self._refuses_commands:
            self._refuse_proposal(message, DropReason.ACKS_MISSING)
        elif self._is_overloaded(message.payloads):
            self._refuse_proposal(message, DropReason.OVERLOADED)
        else:
            self._append_own([(EntryKind.COMMAND, payload) for payload in message.payloads])

    def _refuse_proposal(self, message: Propose, reason: DropReason) -> None:
        self._messages.append(
            ProposeReply(
                sender=self.node_id,
                to=message.sender,
                term=self.term,
                ticket=message.ticket,
                run_id=message.run_id,
                reason=reason,
            )
        )
