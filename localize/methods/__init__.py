"""Learning rules, one file each. A new rule is a new file and a line in :data:`METHODS`."""

from __future__ import annotations

from localize.methods import bp, checkpoint, dgl, infopro, predsim
from localize.methods.auglocal import rule as auglocal
from localize.methods.auglocal import with_infopro as auglocal_infopro
from localize.methods.base import Builder, Context, Method, read_options, with_depth
from localize.methods.gn_dgl import rule as gn_dgl
from localize.methods.mlaan import rule as mlaan
from passes.errors import MethodError

__all__ = ["METHODS", "Builder", "Context", "Method", "get_method", "read_options", "with_depth"]

METHODS: dict[str, Method] = {
    "auglocal": auglocal.METHOD,
    "auglocal+infopro": auglocal_infopro.METHOD,
    "bp": bp.METHOD,
    "checkpoint": checkpoint.METHOD,
    "dgl": dgl.METHOD,
    "dgl+mlaan": mlaan.around(dgl.METHOD),
    "gn-dgl": gn_dgl.METHOD,
    "infopro": infopro.METHOD,
    "infopro+mlaan": mlaan.around(infopro.METHOD),
    "mlaan": mlaan.METHOD,
    "predsim": predsim.METHOD,
}


def get_method(name: str) -> Method:
    """The learning rule of that name.

    Raises:
        MethodError: There is none; the message lists those there are.
    """
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}", remedy=f"Known methods: {', '.join(METHODS)}")
    return METHODS[name]
