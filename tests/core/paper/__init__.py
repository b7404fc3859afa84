"""One test for each statement of the paper and of the dissertation, named after it."""
