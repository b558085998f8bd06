"""Networks of the papers that neither timm nor torchvision has. Imports torch and the errors of passes."""

from __future__ import annotations

from localize.models.cifar_resnet import CifarResNet, cifar_resnet

__all__ = ["CifarResNet", "cifar_resnet"]
