"""A power cut, simulated: what a file system may leave of a state, in every combination, opened and judged.

    workload   commands, and what they must lead to
    child      applies them to a store, under strace, and says how far it is
    strace     runs it, and reads the trace
    disk       the file system that the trace builds: what is on it, and what of that is durable
    crash      the states that a power cut may leave at one moment
    judge      opens such a state and compares it with a replay of the log
    hunt       all of it together; `python -m tests.powercut` runs it for long

The idea is that of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018): record what a
program asks of the file system, and then build the states that the requests allow, instead of hoping that a
real crash meets a bad one.
"""
