"""Plan -> Drawing -> pictures and graphs: Graphviz, networkx, GraphML, TensorBoard.

May import what ``localize.export`` may import.
"""
