"""What a training step takes in memory: counted, forecast and planned on fake tensors.

May import ``localize.compiler`` and what that may import.
"""
