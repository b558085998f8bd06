"""What must hold of every plan, over timm: each parameter is trained, and by one local loss alone."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from localize import LocalGraphModule, localize
from localize.bench.sweep.isolation import BATCH, Reach, reach
from localize.plan.plan import Plan
from tests.models.families import TIMM

ODD = (
    "bat_resnext26ts",
    "botnet26t_256",
    "caformer_s18",
    "cspresnet50",
    "deit_tiny_distilled_patch16_224",
    "dla60_res2net",
    "eca_halonext26ts",
    "eca_nfnet_l0",
    "efficientvit_l1",
    "flexivit_small",
    "ghostnetv2_100",
    "hiera_small_abswin_256",
    "hrnet_w48",
    "mixnet_s",
    "mobilenetv4_hybrid_medium",
    "mobilevitv2_050",
    "regnetz_005",
    "resmlp_12_224",
    "swinv2_cr_giant_224",
    "test_coatnet",
    "test_convnext2",
    "test_efficientnet_evos",
    "test_vit3",
    "tf_efficientnet_cc_b0_4e",
    "twins_pcpvt_small",
    "vit_7b_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_srelpos_small_patch16_224",
)
"""Large ones, and other kinds of blocks than the small models of the families have."""

SMALLER: dict[str, dict[str, Any]] = {
    "nasnetalarge": {"num_features": 384, "stem_size": 16},
    "sequencer2d_s": {"layers": [1, 1, 2, 1]},
}
"""Options of models that take long: what grows with depth is seen on fewer blocks."""

LARGE_LAYERS = {
    "coat_tiny": "the blocks of its parallel part share their position encodings",
    "vit_small_patch16_rope_mixed_224": "all blocks share the rotary frequencies, which are trained",
    "vit_srelpos_small_patch16_224": "all blocks share one relative position bias",
}
"""Models with a layer of over half of the MACs, and why it cannot be cut."""


def one_step(local: LocalGraphModule) -> Reach:
    """Run a training step on the meta device, where nothing is computed."""
    spec = local.plan.input
    x = torch.empty((BATCH, *spec.shape[1:]), dtype=spec.dtype, device="meta")
    return reach(local.train(), x, torch.zeros(BATCH, dtype=torch.int64, device="meta"))


LONG = (
    "gemma4_vit_167m",
    "inception_v4",
    "nasnetalarge",
    "pnasnet5large",
    "rexnet_100",
    "sequencer2d_s",
    "swinv2_cr_giant_224",
)
FEW = (
    "beit_base_patch16_224",
    "coat_tiny",
    "convit_tiny",
    "cpubone_nano",
    "deit_tiny_distilled_patch16_224",
    "dla46x_c",
    "efficientvit_b0",
    "ese_vovnet19b_slim_dw",
    "lambda_resnet26t",
    "lcnet_035",
    "samvit_base_patch16_224",
    "test_byobnet",
    "test_coatnet",
    "test_convnext2",
    "test_efficientnet_evos",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit3",
    "test_vit_relpos",
    "tf_efficientnet_cc_b0_4e",
    "tresnet_m",
    "vgg11_bn",
    "vit_small_patch16_rope_mixed_224",
    "vit_srelpos_small_patch16_224",
)
"""Quick ones, together with every repair of a copied layer that any of the models needs: without ``-m registry``."""


def _named(name: str) -> Any:
    marks = [pytest.mark.slow] if name in LONG else [] if name in FEW else [pytest.mark.registry]
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_named(name) for name in (*(member.name for member in TIMM), *ODD)])
def test_every_parameter_is_trained_by_one_loss(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **SMALLER.get(name, {}))
    local = localize(model, d=3)
    plan, sizes = local.plan, {key: p.numel() for key, p in model.named_parameters()}

    owned = [key for module in plan.modules for key in module.parameters]
    assert sorted(owned) == sorted(sizes)
    assert plan.params == sum(sizes.values())
    assert Plan.from_json(plan.to_json()) == plan

    assert [index for module in plan.modules for index in module.layers] == list(range(len(plan.layers)))
    assert all(module.auxiliary for module in plan.modules[:-1])
    assert plan.modules[-1].auxiliary is None
    assert (max(layer.macs for layer in plan.layers) > plan.macs / 2) == (name in LARGE_LAYERS)

    assert one_step(local) == Reach(violations=(), untrained=())
