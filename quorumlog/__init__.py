"""The program: the command line, and the wiring of `serve`. Nothing else."""

import os

# gRPC writes lines of its own to standard error at every connection that ends, and reads this when it is
# imported. What matters of it is an exception, and is told in our words.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
