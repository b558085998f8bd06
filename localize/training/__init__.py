"""The training loop: recipe, updates, checkpoints, metrics and data.

May import ``localize.api``, ``localize.memory`` and every room below them.
"""
