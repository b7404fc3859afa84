"""Histories of what clients were told, and what is held against them. Knows nothing of the server.

A checker that shared code with the store would share its mistakes.
"""
