"""The client commands, a file for each group.

Importing this package must stay cheap: gRPC (70 ms) is imported only once a request is certain to
be made, so that `--help` and usage errors are answered at once.
"""
