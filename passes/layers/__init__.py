"""Modules that passes add to networks: grouped layers, adapters between layers, and plain blocks.

May import ``passes.common`` and what that may import.
"""
