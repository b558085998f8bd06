"""Nodes of a graph -> a module that calls the user's own modules, and the functions that such code calls.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
