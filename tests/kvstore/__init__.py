"""The store and what speaks for it."""
