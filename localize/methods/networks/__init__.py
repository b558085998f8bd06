"""What auxiliary networks are made of: heads, pooling, merging, blocks, and losses.

May import ``localize.plan`` and ``passes``.
"""
