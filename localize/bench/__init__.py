"""Many learning rules and many models, measured: memory, time and work of a training step; models by name; sweeps.

May import every room below it: ``localize.api`` and what that may import. ``localize.export`` is not among them.
"""
