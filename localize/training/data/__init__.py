"""Where images come from, and batches of them that depend on (seed, epoch, step) alone.

May import what ``localize.training`` may import.
"""
