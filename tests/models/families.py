"""A small model of each of timm's families, and small classifiers of torchvision's: what the registries hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision
from torch import nn

CLASSES = 10
RATE = 0.1
"""Of dropout and of stochastic depth, wherever a model has them."""


@dataclass(frozen=True)
class Member:
    """A model that stands for its family, small enough for real forward and backward passes on a CPU."""

    family: str
    """timm's module that defines it; "torchvision" for those of torchvision."""
    name: str
    size: int
    """Pixels a side."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What makes it small: depths and widths."""

    def build(self) -> nn.Module:
        """Build the network in train mode, equal each time, with all random decisions on and no dead branches.

        Dropout and stochastic depth act. Parameters that start out all alike, as zeros, ones or small scales, are
        given random values: a branch behind zeros would hide what goes wrong in it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = self._make()
            for module in model.modules():
                if isinstance(module, nn.Dropout) and module.p == 0 and not module.inplace:
                    module.p = RATE
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.numel() and parameter.min() == parameter.max():
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.train()

    def fresh(self) -> nn.Module:
        """Build the network in train mode as its own initializers leave it, equal each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self._make().train()

    def batch(self) -> torch.Tensor:
        """Four random images."""
        return torch.randn(4, 3, self.size, self.size, generator=torch.Generator().manual_seed(3))

    def _make(self) -> nn.Module:
        if self.family == "torchvision":
            made: nn.Module = torchvision.models.get_model(self.name, num_classes=CLASSES, **self.options)
            return made
        rates: dict[str, Any] = {"drop_rate": RATE} if self.family in _NO_STOCHASTIC_DEPTH else _RATES
        return timm.create_model(self.name, num_classes=CLASSES, **rates, **self.options)


_RATES: dict[str, Any] = {"drop_rate": RATE, "drop_path_rate": RATE}
_NO_STOCHASTIC_DEPTH = frozenset(
    {
        "convmixer",
        "densenet",
        "dla",
        "dpn",
        "efficientvit_mit",
        "efficientvit_msra",
        "ghostnet",
        "hrnet",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "lcnetv2",
        "nasnet",
        "pnasnet",
        "repghost",
        "repvit",
        "selecsls",
        "senet",
        "shvit",
        "vgg",
        "xception",
    }
)
"""Families whose constructors take no ``drop_path_rate``."""


def _sized(size: int, **options: Any) -> dict[str, Any]:
    return {"img_size": size, **options}


TIMM = (
    Member("beit", "beit_base_patch16_224", 64, _sized(64, embed_dim=96, depth=4, num_heads=3)),
    Member("byoanet", "lambda_resnet26t", 64, _sized(64)),
    Member("byobnet", "test_byobnet", 64),
    Member("cait", "cait_xxs24_224", 64, _sized(64, embed_dim=96, depth=4)),
    Member("coat", "coat_tiny", 64, _sized(64, parallel_depth=2, serial_depths=(1, 1, 1, 1))),
    Member("convit", "convit_tiny", 64, _sized(64, depth=4, local_up_to_layer=2)),
    Member("convmixer", "convmixer_768_32", 32),
    Member("convnext", "test_convnext", 64),
    Member("cpubone", "cpubone_nano", 64),
    Member("crossvit", "crossvit_tiny_240", 120, _sized(120)),
    Member("csatv2", "csatv2", 64, {"depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)}),
    Member("cspnet", "cs3darknet_focus_s", 64),
    Member("cspnext", "cspnext_tiny", 64),
    Member("davit", "davit_tiny", 64, {"embed_dims": (32, 64, 128, 256), "num_heads": (1, 2, 4, 8)}),
    Member("deepseek_vit", "deepseek_vit_412m", 84, _sized(84, embed_dim=96, depth=3, num_heads=4)),
    Member("deit", "deit_tiny_patch16_224", 64, _sized(64, depth=4)),
    Member("densenet", "densenet121", 64, {"growth_rate": 16, "block_config": (2, 3, 4, 3)}),
    Member("dla", "dla46x_c", 64),
    Member("dpn", "dpn48b", 64),
    Member("edgenext", "edgenext_xx_small", 64),
    Member("efficientformer", "efficientformer_l1", 224, {"depths": (1, 1, 2, 3), "embed_dims": (16, 24, 48, 96)}),
    Member("efficientformer_v2", "efficientformerv2_s0", 64, _sized(64)),
    Member("efficientnet", "test_efficientnet", 64),
    Member("efficientvim", "efficientvim_m1", 128),
    Member("efficientvit_mit", "efficientvit_b0", 64),
    Member("efficientvit_msra", "efficientvit_m0", 128, _sized(128)),
    Member("eva", "eva02_tiny_patch14_224", 56, _sized(56, depth=4)),
    Member("fasternet", "fasternet_t0", 64),
    Member("fastvit", "fastvit_t8", 64),
    Member("focalnet", "focalnet_tiny_srf", 64),
    Member("gcvit", "gcvit_xxtiny", 64, _sized(64)),
    Member("gemma4_vit", "gemma4_vit_167m", 96, _sized(96, embed_dim=64, depth=3, num_heads=4, intermediate_size=128)),
    Member("ghostnet", "ghostnet_050", 64),
    Member("hardcorenas", "hardcorenas_a", 64),
    Member("hgnet", "hgnetv2_b0", 64),
    Member("hiera", "hiera_tiny_224", 64, _sized(64, embed_dim=32, stages=(1, 1, 2, 1))),
    Member(
        "hieradet_sam2", "sam2_hiera_tiny", 64, {"embed_dim": 32, "stages": (1, 1, 3, 1), "global_att_blocks": (3,)}
    ),
    Member("hrnet", "hrnet_w18_small", 64),
    Member("iformer", "iformer_t", 64),
    Member("inception_next", "inception_next_atto", 64),
    Member("inception_resnet_v2", "inception_resnet_v2", 96),
    Member("inception_v3", "inception_v3", 96),
    Member("inception_v4", "inception_v4", 96),
    Member("lcnetv2", "lcnetv2_small", 64),
    Member("levit", "levit_128s", 128, _sized(128)),
    Member("lowformer", "lowformer_b0", 64),
    Member("mambaout", "test_mambaout", 64),
    Member("maxxvit", "test_maxvit", 64, _sized(64)),
    Member("metaformer", "poolformerv2_s12", 64),
    Member("mlp_mixer", "gmlp_ti16_224", 64, _sized(64)),
    Member("mobilenetv3", "lcnet_035", 64),
    Member("mobilenetv5", "mobilenetv5_base", 64, {"channel_multiplier": 0.25}),
    Member("mobilevit", "mobilevit_xxs", 64, _sized(64)),
    Member("mvitv2", "mvitv2_tiny", 64, _sized(64)),
    Member("naflexvit", "naflexvit_base_patch16_gap", 64, _sized(64, embed_dim=96, depth=3, num_heads=3)),
    Member("nasnet", "nasnetalarge", 64, {"num_features": 384, "stem_size": 16}),
    Member("nest", "nest_tiny", 64, _sized(64)),
    Member("nextvit", "nextvit_small", 64, {"depths": (1, 1, 5, 1)}),
    Member("nfnet", "test_nfnet", 64),
    Member("pit", "pit_ti_224", 64, _sized(64)),
    Member("pnasnet", "pnasnet5large", 64),
    Member("pvt_v2", "pvt_v2_b0", 64),
    Member("qwen3_vit", "qwen3_vit_88m", 64, _sized(64, embed_dim=96, depth=3, num_heads=4)),
    Member("rdnet", "rdnet_tiny", 64, {"num_init_features": 16, "growth_rates": [16, 24, 32, 32, 32, 32, 56]}),
    Member("regnet", "regnety_002", 64),
    Member("repghost", "repghostnet_050", 64),
    Member("repvit", "repvit_m0_9", 64),
    Member("res2net", "res2next50", 64, {"layers": [1, 2, 2, 1]}),
    Member("resnest", "resnest14d", 64),
    Member("resnet", "test_resnet", 64),
    Member("resnetv2", "resnetv2_18", 64),
    Member("rexnet", "rexnet_100", 64),
    Member("selecsls", "selecsls42", 64),
    Member("senet", "legacy_seresnet18", 64),
    Member("sequencer", "sequencer2d_s", 56, _sized(56, layers=[1, 1, 2, 1])),
    Member("shvit", "shvit_s1", 64),
    Member("sknet", "skresnet18", 64),
    Member("starnet", "starnet_s050", 64),
    Member("swiftformer", "swiftformer_xs", 64, _sized(64)),
    Member("swin_transformer", "swin_tiny_patch4_window7_224", 64, _sized(64, embed_dim=48)),
    Member("swin_transformer_v2", "swinv2_tiny_window8_256", 64, _sized(64, embed_dim=48)),
    Member("swin_transformer_v2_cr", "swinv2_cr_tiny_ns_224", 64, _sized(64, embed_dim=48)),
    Member("tiny_vit", "tiny_vit_5m_224", 64),
    Member("tnt", "tnt_s_patch16_224", 64, _sized(64, depth=3)),
    Member("tresnet", "tresnet_m", 64, {"layers": [1, 1, 2, 1]}),
    Member("twins", "twins_svt_small", 64, _sized(64, depths=[2, 2, 2, 2])),
    Member("vgg", "vgg11_bn", 64, {"mlp_ratio": 1 / 64}),
    Member("visformer", "visformer_tiny", 64, _sized(64)),
    Member("vision_transformer", "test_vit", 64, _sized(64)),
    Member("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", 64, _sized(64, depth=4)),
    Member("vision_transformer_relpos", "test_vit_relpos", 64, _sized(64)),
    Member(
        "vision_transformer_sam",
        "samvit_base_patch16_224",
        64,
        _sized(64, embed_dim=96, depth=4, num_heads=3, window_size=3, global_attn_indexes=[1, 3]),
    ),
    Member("vitamin", "vitamin_small_224", 64, _sized(64, depth=4)),
    Member("volo", "volo_d1_224", 64, _sized(64)),
    Member("vovnet", "ese_vovnet19b_slim_dw", 64),
    Member("xception", "legacy_xception", 64),
    Member("xception_aligned", "xception41p", 64),
    Member("xcit", "xcit_nano_12_p8_224", 64, _sized(64, depth=4)),
)
"""One of each of timm's 98 families."""

KINDS = (
    Member("byoanet", "bat_resnext26ts", 256, _sized(256)),
    Member("byoanet", "botnet26t_256", 64, _sized(64)),
    Member("byoanet", "eca_halonext26ts", 256, _sized(256)),
    Member("byobnet", "mobileone_s0", 64),
    Member("byobnet", "repvgg_a0", 64),
    Member("coat", "coat_lite_tiny", 64, _sized(64)),
    Member("convnext", "test_convnext2", 64),
    Member("crossvit", "crossvit_9_dagger_240", 120, _sized(120)),
    Member("cspnet", "cspresnet50", 64),
    Member("deit", "deit3_small_patch16_224", 64, _sized(64, depth=3)),
    Member("deit", "deit_tiny_distilled_patch16_224", 64, _sized(64, depth=3)),
    Member("densenet", "densenetblur121d", 64, {"block_config": (2, 2, 2, 2)}),
    Member("dla", "dla34", 64),
    Member("dpn", "dpn68", 64),
    Member("edgenext", "edgenext_small_rw", 64),
    Member("efficientnet", "mixnet_s", 64),
    Member("efficientnet", "test_efficientnet_evos", 64),
    Member("efficientnet", "test_efficientnet_gn", 64),
    Member("efficientnet", "tf_efficientnet_cc_b0_4e", 64),
    Member("efficientnet", "tf_mixnet_s", 64),
    Member("efficientvit_mit", "efficientvit_l1", 64),
    Member("eva", "vit_pe_core_tiny_patch16_384", 64, _sized(64, depth=3)),
    Member("eva", "vit_small_patch16_rope_mixed_224", 64, _sized(64, depth=3, embed_dim=96, num_heads=3)),
    Member("eva", "vit_tiny_patch16_dinov3_qkvb", 64, _sized(64, depth=3)),
    Member("fastvit", "fastvit_mci0", 64),
    Member("ghostnet", "ghostnetv2_100", 64),
    Member("ghostnet", "ghostnetv3_050", 64),
    Member("hgnet", "hgnet_tiny", 64),
    Member("hiera", "hiera_small_abswin_256", 64, _sized(64, embed_dim=32, stages=(1, 1, 2, 1))),
    Member("levit", "levit_conv_128s", 128, _sized(128)),
    Member("maxxvit", "coatnet_rmlp_nano_rw_224", 64, _sized(64)),
    Member("maxxvit", "maxxvitv2_nano_rw_256", 64, _sized(64)),
    Member("maxxvit", "test_coatnet", 64, _sized(64)),
    Member("metaformer", "caformer_s18", 64),
    Member("metaformer", "poolformer_s12", 64),
    Member("mlp_mixer", "resmlp_12_224", 64, _sized(64)),
    Member("mobilenetv3", "mobilenetv3_small_050", 64),
    Member("mobilenetv3", "mobilenetv4_hybrid_medium", 64),
    Member("mobilevit", "mobilevitv2_050", 64),
    Member("mvitv2", "mvitv2_small_cls", 64, _sized(64, global_pool="avg")),
    Member("naflexvit", "naflexvit_base_patch16_siglip", 64, _sized(64, embed_dim=96, depth=3, num_heads=3)),
    Member("nfnet", "eca_nfnet_l0", 64),
    Member("nfnet", "nf_regnet_b0", 64),
    Member("nfnet", "nf_seresnet26", 64),
    Member("pit", "pit_ti_distilled_224", 64, _sized(64)),
    Member("pvt_v2", "pvt_v2_b2_li", 64),
    Member("regnet", "regnetz_005", 64),
    Member("resnest", "resnest50d_1s4x24d", 64, {"layers": [1, 1, 2, 1]}),
    Member("resnet", "ecaresnet26t", 64),
    Member("resnet", "resnetrs50", 64, {"layers": (1, 1, 2, 1)}),
    Member("resnetv2", "resnetv2_50x1_bit", 64),
    Member("swin_transformer", "swin_s3_tiny_224", 64, _sized(64, embed_dim=48)),
    Member("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 64, _sized(64, embed_dim=48)),
    Member("tnt", "tnt_s_legacy_patch16_224", 64, _sized(64, depth=3)),
    Member("tresnet", "tresnet_v2_l", 64, {"layers": [1, 1, 2, 1]}),
    Member("twins", "twins_pcpvt_small", 64, _sized(64, depths=[1, 1, 2, 1])),
    Member("vision_transformer", "flexivit_small", 64, _sized(64, depth=3)),
    Member("vision_transformer", "test_vit2", 64, _sized(64)),
    Member("vision_transformer", "test_vit3", 64, _sized(64)),
    Member("vision_transformer", "test_vit4", 64, _sized(64)),
    Member("vision_transformer", "vit_base_patch16_siglip_224", 64, _sized(64, depth=3, embed_dim=96, num_heads=3)),
    Member("vision_transformer", "vit_small_patch16_18x2_224", 64, _sized(64, depth=2)),
    Member("vision_transformer_relpos", "vit_relpos_small_patch16_rpn_224", 64, _sized(64, depth=3)),
    Member("vision_transformer_relpos", "vit_srelpos_small_patch16_224", 64, _sized(64, depth=3)),
    Member("xcit", "xcit_nano_12_p16_224", 64, _sized(64, depth=3)),
)
"""Further kinds of blocks, attention, convolutions, norms and heads within the families."""

TORCHVISION = tuple(
    Member("torchvision", name, size, options)
    for name, size, options in (
        ("alexnet", 64, {}),
        ("convnext_tiny", 64, {}),
        ("densenet121", 64, {}),
        ("efficientnet_b0", 64, {}),
        ("efficientnet_v2_s", 64, {}),
        ("googlenet", 64, {"init_weights": False}),
        ("inception_v3", 299, {"init_weights": False}),
        ("maxvit_t", 224, {}),
        ("mnasnet0_5", 64, {}),
        ("mobilenet_v2", 64, {}),
        ("mobilenet_v3_small", 64, {}),
        ("regnet_y_400mf", 64, {}),
        ("resnet18", 64, {}),
        ("resnext50_32x4d", 64, {}),
        ("shufflenet_v2_x0_5", 64, {}),
        ("squeezenet1_1", 64, {}),
        ("swin_t", 64, {}),
        ("swin_v2_t", 64, {}),
        ("vgg11", 64, {}),
        ("vit_b_16", 64, {"image_size": 64}),
        ("wide_resnet50_2", 64, {}),
    )
)
"""One of each of torchvision's kinds of classifier."""
