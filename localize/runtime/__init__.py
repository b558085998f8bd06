"""What ``localize()`` returns, and how its training steps run.

May import ``localize.plan``, ``localize.methods`` and ``passes``.
"""
