"""Many models, one by one: localized, stepped, isolation checked, in worker processes.

May import what ``localize.bench`` may import.
"""
