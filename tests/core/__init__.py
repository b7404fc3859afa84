"""Tests of the core: the paper line by line, scenarios as text, leaves against brute force."""
