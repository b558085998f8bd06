"""Turn a plan into a drawing of boxes and arrows, and a drawing into Graphviz, networkx, GraphML or TensorBoard graphs.

May import what ``localize.export`` may import, but nothing of ``page``, ``programs`` and ``python``.
"""
