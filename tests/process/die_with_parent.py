"""Becomes the given command, which the kernel then kills when the parent dies.

    python die_with_parent.py PARENT_PID READY_FD COMMAND ARGS...

A test run that is itself killed runs no clean-up code. PR_SET_PDEATHSIG survives exec, so the command
keeps this process's id. Done in a program of its own because a preexec_fn would run Python between fork
and exec of a process that has gRPC's threads. NB: the signal comes when the *thread* that forked ends:
start members from the main thread.

READY_FD is closed by the exec: whoever holds the other end knows then that the death is watched. Without
that, a member stopped (SIGSTOP) right after its start sleeps on here, unwatched, for ever.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, ready_fd, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(ready_fd, False)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent died before its death could be watched")
    os.execv(command[0], command)  # noqa: S606 (that there is no shell is the point)


if __name__ == "__main__":
    main()
