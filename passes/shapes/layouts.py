"""Layouts: where the channels of every value are.

Layers of one network may disagree (Swin: images with channels last, then tokens), so each value has its own layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from passes.common.layer_kinds import IMAGE_LAYERS, VOLUME_LAYERS, normalizes_last
from passes.ir import Captured, Layout, TensorSpec


def with_layouts(captured: Captured, specs: Mapping[str, TensorSpec | None]) -> dict[str, TensorSpec | None]:
    """Return the specs with their layouts: each follows from what the node does and the layouts that it reads."""
    layouts: dict[str, Layout] = {}
    known: dict[str, TensorSpec | None] = {}
    for node in captured.nodes:
        spec = specs[node.name]
        if spec is None:
            known[node.name] = None
            continue
        layout = layouts[node.name] = _layout(captured, node, spec, layouts, specs)
        known[node.name] = TensorSpec(spec.shape, spec.dtype, layout)
    return known


def _layout(
    captured: Captured,
    node: fx.Node,
    spec: TensorSpec,
    layouts: Mapping[str, Layout],
    specs: Mapping[str, TensorSpec | None],
) -> Layout:
    rank = len(spec.shape)
    # The number of dimensions decides, but for images, whose channels come first or last.
    if rank == 5:
        return "NCDHW" if _is_volume(captured, node, layouts) else "other"
    if rank != 4:
        return {2: "NC", 3: "NLC"}.get(rank, "other")  # type: ignore[return-value]
    if node.op == "placeholder":
        return "NCHW"
    if node.op == "call_module":
        module = captured.model.get_submodule(str(node.target))
        if isinstance(module, nn.Linear) or normalizes_last(module):
            return "NHWC"
        if isinstance(module, IMAGE_LAYERS):
            return "NCHW"
    # Other operations: a permutation says where channels go, and anything else leaves them where they were.
    order = _permutation(node)
    source = next((n for n in node.all_input_nodes if layouts.get(n.name) in ("NCHW", "NHWC")), None)
    if order == (0, 2, 3, 1):
        return "NHWC"
    if order == (0, 3, 1, 2):
        return "NCHW"
    if source is not None:
        return layouts[source.name]
    # Tokens folded back into an image: the dimension of the tokens' size is that of channels.
    tokens = next((specs[n.name] for n in node.all_input_nodes if layouts.get(n.name) == "NLC"), None)
    return "NHWC" if tokens is not None and tokens.shape[-1] == spec.shape[-1] else "NCHW"


def _is_volume(captured: Captured, node: fx.Node, layouts: Mapping[str, Layout]) -> bool:
    """Return whether a value of five dimensions is a batch of volumes or clips with their channels first."""
    module = captured.module(node)
    if node.op == "placeholder" or isinstance(module, VOLUME_LAYERS):
        return True
    turns = {"view", "reshape", "permute", "transpose", "unflatten", torch.permute, torch.transpose, torch.reshape}
    return node.target not in turns and any(layouts.get(p.name) == "NCDHW" for p in node.all_input_nodes)


def _permutation(node: fx.Node) -> tuple[int, ...] | None:
    if node.op == "call_module" or node.target not in ("permute", torch.permute):
        return None
    dims: tuple[object, ...] = node.args[1:]
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    order = tuple(d % 4 for d in dims if isinstance(d, int))
    return order if len(order) == len(dims) == 4 else None
