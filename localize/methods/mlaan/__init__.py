"""MLAAN (Zhang et al., AAAI 2025): losses that reach several modules, and copies of later layers that follow these.

May import what ``localize.methods`` may import.
"""
