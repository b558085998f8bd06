"""Networks of the papers that neither timm nor torchvision has."""

from __future__ import annotations

from localize.models.cifar_resnet import CifarResNet, cifar_resnet

__all__ = ["CifarResNet", "cifar_resnet"]
