"""Real processes under real faults: the harness, recorded histories, their checkers and the tests."""
