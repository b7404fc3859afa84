"""Becomes the given command, which the kernel then kills when the parent dies.

    python die_with_parent.py PARENT_PID COMMAND ARGS...

A test run that is itself killed runs no clean-up code. PR_SET_PDEATHSIG survives exec, so the command
keeps this process's id. Done in a program of its own because a preexec_fn would run Python between fork
and exec of a process that has gRPC's threads. NB: the signal comes when the *thread* that forked ends:
start members from the main thread.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent died before its death could be watched")
    os.execv(command[0], command)  # noqa: S606 (that there is no shell is the point)


if __name__ == "__main__":
    main()
