"""Demonstrations: a real cluster on this machine, a fault, and what its clients are told meanwhile.

`./cluster.sh demo NAME` runs one. Each says what it does before it does it, shows live who answers, and
leaves one HTML file with a picture of what happened. Who has never read about Raft should understand both.

    partition, failover, semisync    the stories: what is done, in which order, what is to be learnt
    stage                            the cluster, its clients, the looks at its nodes, and their end
    scratch                          their temporary directory
    screen                           what is seen meanwhile
    record                           what was seen: plain data, all that a report is made of
    report, picture                  the HTML file
"""
