"""AugLocal (Ma et al., ICLR 2024): auxiliary networks made of the architecture of later layers.

May import what ``localize.methods`` may import.
"""
