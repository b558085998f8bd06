"""DGL, PredSim and InfoPro against their released code, and the costs of them that AugLocal's paper prints."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.flops_tables import BASELINES, TABLE_7_BASELINES, baseline
from localize import LocalGraphModule, localize
from localize.bench.flops import count_flops, step_flops
from localize.memory.peak import peak_step_bytes
from localize.methods.networks.local_loss import Term, WithTerms
from localize.methods.networks.predsim_network import pool_kernel
from localize.models import cifar_resnet
from tests.models.vgg6a import LAYERS, Vgg6a
from tests.tools.paths import REFERENCE

FIGURES = json.loads((REFERENCE / "baselines_cifar.json").read_text())
RESNET32 = FIGURES["resnet32"]
VGG6A = FIGURES["vgg6a"]


@cache
def resnet(depth: int, method: str, **options: Any) -> LocalGraphModule:
    with torch.device("meta"):
        model = cifar_resnet(depth)
    return localize(model, method, **options)


@cache
def vgg6a() -> LocalGraphModule:
    with torch.device("meta"):
        model = Vgg6a()
    example = torch.empty(2, 3, 32, 32)
    return localize(model, "predsim", granularity=tuple(LAYERS), pooled_width=1024, example_inputs=example)


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def split(network: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Classifier and network of the further term, of which there is one at most."""
    if not isinstance(network, WithTerms):
        return network, None
    (term,) = network.terms.values()
    assert isinstance(term, Term)
    return network.classifier, term.network


KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU)


def layers(network: nn.Module) -> list[str]:
    """Convolutions, linear layers, norms and activations, in the words of the reference file; pooling is left out."""
    found = []
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            stride = f",s{part.stride[0]}"
            found.append(f"Conv2d({part.in_channels}->{part.out_channels},k{part.kernel_size[0]}{stride},")
        elif isinstance(part, nn.Linear):
            found.append(f"Linear({part.in_features}->{part.out_features},")
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            found[-1] += f"bias={part.bias is not None})"
        elif isinstance(part, (nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU)):
            found.append(type(part).__name__)
    return found


def expected_layers(rows: list[str]) -> list[str]:
    # Convolutions of the further networks are written without their stride, which is 1.
    kept = [row for row in rows if row.startswith(("Conv2d", "Linear", "BatchNorm", "ReLU"))]
    return [row if ",s" in row or row[0] != "C" else row.replace(",bias", ",s1,bias") for row in kept]


# ResNet-32 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DGL", "PredSim", "InfoPro"])
def test_every_auxiliary_network_of_resnet32(name: str) -> None:
    """Parameters and costs as planned by formulas, and counted again on what is built."""
    local, expected = resnet(32, name.lower()), RESNET32[name]
    plan = local.plan
    assert len(plan.layers) == len(plan.modules) == 16
    assert sum(module.auxiliary is not None for module in plan.modules) == expected["n_local_with_aux"] == 15
    for planned, module in zip(plan.modules[:-1], local.local_modules, strict=False):
        output = plan.layers[planned.layers[-1]].output
        row = expected["by_channels"][str(output.channels)]
        auxiliary = planned.auxiliary
        assert auxiliary is not None
        assert module.auxiliary is not None
        terms = (sum(term.params for term in auxiliary.terms), sum(term.macs for term in auxiliary.terms))
        assert terms == (row["second_params"], row["second_macs_conv_linear"])
        assert auxiliary.params - terms[0] == row["classifier_params"]
        assert auxiliary.macs - terms[1] == row["classifier_macs_conv_linear"]
        classifier, further = split(module.auxiliary)
        assert params(classifier) == row["classifier_params"]
        counted = count_flops(classifier, output.shape[1:])
        assert counted == (row["classifier_macs_conv_linear"], row["classifier_macs_fvcore"])
        assert layers(classifier) == expected_layers(row["classifier_layers"])
        assert (further is None) == (not row["second_params"])
        if further is not None:
            assert params(further) == row["second_params"]
            counted = count_flops(further, output.shape[1:])
            assert counted == (row["second_macs_conv_linear"], row["second_macs_fvcore"])
            assert layers(further) == expected_layers(row["second_layers"])
    assert params(local) == plan.params + plan.auxiliary_params


@pytest.mark.parametrize(("index", "channels"), [(0, "16"), (6, "32"), (15 - 1, "64")])
def test_pools_of_resnet32(index: int, channels: str) -> None:
    def pools(name: str) -> list[nn.Module]:
        network = resnet(32, name.lower()).local_modules[index].auxiliary
        assert network is not None
        return [part for part in network.modules() if isinstance(part, (nn.AdaptiveAvgPool2d, nn.AvgPool2d))]

    rows = {name: RESNET32[name]["by_channels"][channels]["classifier_layers"] for name in ("DGL", "PredSim")}
    first, second = (row for row in rows["DGL"] if row.startswith("Adaptive"))
    found = [pool.extra_repr() for pool in pools("DGL")]
    assert found == [f"output_size=({size}, {size})" for size in (row[18:-1] for row in (first, second))]
    (window,) = pools("PredSim")
    assert f"AvgPool2d(kernel={window.kernel_size},padding=(0, 0))" == rows["PredSim"][0]


def test_infopros_weights_are_linear() -> None:
    """Of ResNet-32 with 16 modules: alpha from 5 to 0.2, beta from 0.05 to 0.5, by the index of the module."""
    local = resnet(32, "infopro")
    for planned, module in zip(local.plan.modules[:-1], local.local_modules, strict=False):
        auxiliary, network, part = planned.auxiliary, module.auxiliary, planned.index / 14
        assert auxiliary is not None
        assert isinstance(network, WithTerms)
        assert auxiliary.terms[0].weight == network.weights["reconstruction"]
        assert auxiliary.weight == network.weight
        assert auxiliary.terms[0].weight == pytest.approx(5 * (1 - part) + 0.2 * part, abs=1e-12)
        assert auxiliary.weight == pytest.approx(0.05 * (1 - part) + 0.5 * part, abs=1e-12)


# VGG6a ----------------------------------------------------------------------------------------------------------------


def test_primary_layers_of_vgg6a() -> None:
    plan = vgg6a().plan
    assert [layer.params for layer in plan.layers] == [row["main_params"] for row in VGG6A["layers"]]
    assert [layer.macs for layer in plan.layers[:4]] == [row["main_macs"] for row in VGG6A["layers"][:4]]
    assert plan.classifier_params == VGG6A["output_params"]
    assert plan.params == VGG6A["main_params_total"]


def test_predsim_networks_of_vgg6a() -> None:
    """The reference has a loss behind the hidden layer too, where here the output loss trains it."""
    local = vgg6a()
    assert [module.auxiliary is None for module in local.plan.modules] == [False] * 4 + [True]
    for planned, module, row in zip(local.plan.modules, local.local_modules, VGG6A["layers"][:4], strict=False):
        auxiliary = planned.auxiliary
        assert auxiliary is not None
        assert module.auxiliary is not None
        (term,) = auxiliary.terms
        assert (term.params, term.macs) == (row["sim_params"], row["sim_macs"])
        assert auxiliary.params - term.params == row["pred_params"]
        assert auxiliary.macs - term.macs == row["pred_macs"]
        classifier, further = split(module.auxiliary)
        assert further is not None
        shape = local.plan.layers[planned.layers[-1]].output.shape[1:]
        assert (params(classifier), params(further)) == (row["pred_params"], row["sim_params"])
        assert count_flops(classifier, shape).macs == row["pred_macs"]
        assert count_flops(further, shape).macs == row["sim_macs"]
        (pool,) = (part for part in classifier.modules() if isinstance(part, nn.AvgPool2d))
        assert pool.kernel_size == tuple(row["pool_kernel"])


def test_predsim_behind_features_without_positions() -> None:
    """The hidden linear layer of VGG6a, in a network where another one follows it."""
    row = VGG6A["layers"][4]
    with torch.device("meta"):
        width = row["fc_hidden"][1]
        model = nn.Sequential(nn.Sequential(nn.Linear(8192, width), nn.BatchNorm1d(width), nn.ReLU()),
                              nn.Sequential(nn.Linear(width, width), nn.ReLU()), nn.Linear(width, 10))  # fmt: skip
    local = localize(model, "predsim", granularity=["0", "1"], pooled_width=1024, example_inputs=torch.empty(2, 8192))
    auxiliary, network = local.plan.modules[0].auxiliary, local.local_modules[0].auxiliary
    assert local.plan.layers[0].params == row["main_params"]
    assert auxiliary is not None
    assert network is not None
    (term,) = auxiliary.terms
    classifier, further = split(network)
    assert further is not None
    assert (term.params, auxiliary.params - term.params) == (row["sim_params"], row["pred_params"])
    assert (params(further), params(classifier)) == (row["sim_params"], row["pred_params"])


@pytest.mark.parametrize("row", VGG6A["layers"][:4], ids=lambda row: str(row["conv"]))
def test_pooling_windows_of_vgg6a(row: dict[str, Any]) -> None:
    channels, size = row["conv"][1], row["hw"]
    kernel = pool_kernel(channels, (size, size), 1024)
    assert list(kernel) == row["pool_kernel"]
    assert channels * math.prod(size // window for window in kernel) == row["pred_in"]


# Costs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "printed"), TABLE_7_BASELINES.items())
def test_flops_of_table_7(method: str, printed: str) -> None:
    """The paper leaves out the networks of further terms, batch norm and pooling."""
    counted = step_flops(baseline(method), terms=False)
    assert f"{counted.macs / 1e9:.2f}" == printed
    assert abs(counted.total - counted.macs) / 1e9 < 0.005


@pytest.mark.parametrize(("method", "full"), [("predsim", "0.383"), ("infopro", "0.577")])
def test_flops_with_every_network(method: str, full: str) -> None:
    assert f"{step_flops(baseline(method)).total / 1e9:.3f}" == full


def test_flops_by_hand() -> None:
    """19 modules of 16 channels, 18 of 32 and 17 of 64, from the figures of ResNet-32's."""
    for name in BASELINES:
        rows = RESNET32[{"dgl": "DGL", "predsim": "PredSim", "infopro": "InfoPro"}[name]]["by_channels"]
        own = step_flops(resnet(110, "bp")).total
        for kind in ("classifier", "second"):
            own += sum(n * rows[c].get(f"{kind}_macs_fvcore", 0) for n, c in ((19, "16"), (18, "32"), (17, "64")))
        assert step_flops(baseline(name)).total == own


MEASURED = {"dgl": 0.49e9, "predsim": 0.62e9, "infopro": 0.77e9}
"""Method -> peak bytes of the authors' code: ResNet-32, batch 1024, SGD with momentum."""


@pytest.mark.parametrize("method", MEASURED)
def test_memory_is_what_the_released_code_takes(method: str) -> None:
    """To the two digits that were noted, or less."""
    local = localize(cifar_resnet(32), method, seed=0, verify=False)
    assert 0.85 * MEASURED[method] < peak_step_bytes(local, 1024) < 1.02 * MEASURED[method]


# Partitions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "modules"), [(32, 2), (32, 4), (32, 8), (110, 2), (110, 4)])
def test_partitions(depth: int, modules: int) -> None:
    """Where InfoPro and GN-DGL cut: as many modules, or, where the longer ones come first, their sizes."""
    expected = FIGURES["partition_ends"][f"resnet{depth}"][str(modules)]
    by_sizes = resnet(depth, "dgl", modules=tuple(expected["sizes"])).plan
    plans = [by_sizes] if (depth, modules) == (110, 2) else [by_sizes, resnet(depth, "dgl", modules=modules).plan]
    for plan in plans:
        assert [len(module.layers) for module in plan.modules] == expected["sizes"]
        assert [module.layers[-1] for module in plan.modules[:-1]] == expected["lin"]
        names = [f"layer{stage}.{block}" for stage, block in expected["ends"]]
        assert [plan.layers[module.layers[-1]].name for module in plan.modules[:-1]] == names
