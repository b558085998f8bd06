"""Splits the width of a network in groups of channels that never meet inside a local module.

May import the rooms that make a Network of a model, and what these may import.
"""
