"""Parts of auxiliary networks: heads, pooling, merging, blocks, and losses.

May import ``localize.plan`` and ``passes``.
"""
