"""AugLocal with InfoPro's reconstruction loss: AugLocal's auxiliary networks classify, a decoder reconstructs.

Ma, Wu, Si, Tan: "Scaling Supervised Local Learning with Augmented Auxiliary Networks" (AugLocal), ICLR 2024, appendix
A.9: each local module has InfoPro's decoder and reconstruction loss (Wang et al., ICLR 2021) beside AugLocal's
auxiliary network, which stays as it is. See :mod:`localize.methods.auglocal.rule`,
:mod:`localize.methods.reconstruction` and :mod:`localize.methods.infopro` for what each of them leaves open.

Choices the paper leaves open:

- The paper gives no weights of the two losses; the defaults are InfoPro's, linear in the index of the module. The last
  module with an auxiliary network has the last weights, however many layers the output loss trains.
- ``max_aux_macs`` bounds AugLocal's auxiliary networks, as equation 2 does; decoders come on top.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from localize.methods.auglocal import rule as auglocal
from localize.methods.auglocal.options import Options as AugLocalOptions
from localize.methods.base import Context, Method
from localize.methods.layerwise import Place
from localize.methods.networks.local_loss import WithTerms
from localize.methods.options import join_options
from localize.methods.reconstruction import (
    ReconstructionOptions,
    build_reconstruction,
    require_images,
    with_reconstruction,
)
from localize.plan.plan import LocalModulePlan
from passes.common.initializer import Initializer

Options = join_options(AugLocalOptions, ReconstructionOptions)
"""AugLocal's options and those of InfoPro's reconstruction loss."""


def plan(context: Context, options: Any) -> tuple[LocalModulePlan, ...]:
    """Plan AugLocal's local modules, each with a decoder beside its auxiliary network.

    Raises:
        MethodError: ``max_aux_macs`` cannot be met, or the input is not a batch of images.
    """
    require_images(context, options, "auglocal+infopro")
    planned = auglocal.plan(context, options)
    extended = []
    for module in planned:
        if module.auxiliary is not None:
            place = Place(module.index, len(planned), module.layers[-1])
            auxiliary = with_reconstruction(context, module.auxiliary, options, place)
            module = dataclasses.replace(module, auxiliary=auxiliary)  # noqa: PLW2901
        extended.append(module)
    return tuple(extended)


def build(context: Context, module: LocalModulePlan, options: Any, draw: Initializer) -> WithTerms:
    """Build AugLocal's auxiliary network and the decoder of a planned module."""
    classifier = auglocal.build(context, module, options, draw)
    return build_reconstruction(context, module, classifier, options, draw)


METHOD = Method(name="auglocal+infopro", Options=Options, plan=plan, build=build)
