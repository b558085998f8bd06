"""Modules of our own that passes put into networks: grouped layers, adapters and plain blocks.

May import ``passes.common`` and what that may import.
"""
