"""A local layer for another place: repairs its graph until it runs behind another input, and rebuilds it.

May import the rooms that make a Network of a model, and what these may import.
"""
