"""Captured, Shapes -> Partition: the minimal local layers of a network, and its classifier.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
