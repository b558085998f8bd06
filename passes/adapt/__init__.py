"""Copies of local layers for other inputs: repairs a layer's graph until it runs there, and rebuilds it.

May import the rooms that make a Network of a model, and what these may import.
"""
