"""Nodes of a graph -> code over the user's own modules, and what that code calls.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
