"""The plan as JSON."""

from __future__ import annotations

from localize.export.request import Request


def plan_json(request: Request) -> bytes:
    """What :meth:`localize.Plan.from_json` reads, and ``plan.schema.json`` describes."""
    return (request.local.plan.to_json() + "\n").encode("utf-8")
