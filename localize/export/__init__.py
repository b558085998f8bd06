"""Write a localized model as a picture, page, graph, program or Python source; ``FORMATS`` lists the formats.

May import every room below it on the spine, down from ``memory`` and ``runtime``; only ``cli`` may import it.
"""

from localize.export.formats import FORMATS, Format, add_graph, export, to_networkx
from localize.export.request import Request, View
from localize.plan.schema import plan_schema

__all__ = ["FORMATS", "Format", "Request", "View", "add_graph", "export", "plan_schema", "to_networkx"]
