"""ONNX files and programs of ``torch.export`` of thirty models by six methods, run beside the models themselves."""

from __future__ import annotations

import pytest
import torch

from localize import localize
from localize.models import cifar_resnet
from tests.models.thirty import METHODS_TRIED, allowed, pairs
from tests.tools.exports import require_right, with_statistics


@pytest.mark.registry
@pytest.mark.parametrize(("name", "method"), pairs())
def test_thirty_models_by_six_methods(name: str, method: str) -> None:
    local = allowed(name, method)
    if local is None:
        return
    with_statistics(local.primary)
    if method in ("auglocal", "gn-dgl"):  # the others have the same primary network
        require_right(local, "primary")
    require_right(local, "local", (1, 3))


@pytest.mark.registry
@pytest.mark.parametrize("method", METHODS_TRIED)
def test_every_method_on_a_small_model(method: str) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    local = localize(with_statistics(cifar_resnet(8, width=4)), method, d=2, example_inputs=x, seed=0)
    require_right(local, "local")
