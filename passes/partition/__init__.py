"""Captured, Shapes -> Partition: cuts a network into its minimal local layers and its classifier.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
