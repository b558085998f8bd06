"""GN-DGL (Patel et al., 2023): groups of neurons in each local module, each with a loss of its own.

May import what ``localize.methods`` may import.
"""
