"""Tests, one directory a floor."""
