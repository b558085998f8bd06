"""Models by name: those of timm, torchvision and this package, and functions in a user's file."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from localize.memory.replicas import fake_copy
from passes.errors import LocalizeError


class ModelError(LocalizeError):
    """A model does not exist, or cannot be built."""


FORMS = "timm:NAME, torchvision:NAME, localize:cifar_resnetDEPTH or path.py:callable"
DEFAULT_SIZE = 224
"""Pixels a side for a model that does not say what it takes."""


@dataclass(frozen=True, slots=True)
class ModelFactory:
    """A model that was found by name and is not built yet."""

    spec: str
    """Name of the model, as :func:`find_model` took it."""

    name: str
    """Short name, fit for a folder."""

    make: Callable[[int | None, int | None], nn.Module]
    """Builds the model from number of classes and pixels a side; None leaves either to the model."""

    image_size: int | None = None
    """Pixels a side of the images that the model is meant for, where the model itself does not say."""

    def build(self, classes: int | None = None, image_size: int | None = None, *, meta: bool = False) -> nn.Module:
        """Build the model with new random weights.

        Args:
            classes: Number of outputs; None leaves it to the model, as does a user's function without a parameter
                ``num_classes``.
            image_size: Pixels a side that the model takes; only models of a fixed size need it.
            meta: Build on the meta device, where parameters have shapes but no values and take no memory.

        Raises:
            ModelError: The constructor raised an error, or did not return an ``nn.Module``.
        """
        try:
            model = (self._empty if meta else self.make)(classes, image_size)
        except LocalizeError:
            raise
        except Exception as error:  # a constructor may raise anything
            raise ModelError(f"cannot build {self.spec}", why=f"{type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"{self.spec} gave a {type(model).__name__}, not a torch.nn.Module")
        return model

    def _empty(self, classes: int | None, image_size: int | None) -> nn.Module:
        try:
            with torch.device("meta"):
                return self.make(classes, image_size)
        except Exception:  # the constructor reads values that it computed, such as the rates of stochastic depth
            with _empty_parameters():
                return self.make(classes, image_size).to("meta")


def find_model(spec: str) -> ModelFactory:
    """Find a model by name, without building it.

    >>> find_model("localize:cifar_resnet20").name
    'cifar_resnet20'

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME``, ``localize:cifar_resnetDEPTH`` or ``path.py:callable``. The last
            form runs the file; the callable gets ``num_classes`` if it has a parameter of that name.

    Raises:
        ModelError: No model has this name, or its library is not installed, or the file cannot be run.
    """
    prefix, colon, name = spec.partition(":")
    finders = {"timm": _timm, "torchvision": _torchvision, "localize": _own}
    if colon and name and prefix in finders:
        return finders[prefix](spec, name)
    path, _, attribute = spec.rpartition(":")
    if path.endswith(".py") and attribute:
        return _from_file(spec, Path(path), attribute)
    raise ModelError(f"unknown model {spec!r}", remedy=f"Give {FORMS}")


def input_size(model: nn.Module, native: tuple[int, int] | None, channels: int) -> int | None:
    """Choose the pixels a side of a model's images.

    Args:
        model: The model.
        native: Height and width of the images at hand if they are small; ``None`` if they are large.
        channels: Channels of an image.

    Returns:
        ``None`` if the model takes the small images as they are (fully convolutional ones do), else the model's
        configured size (timm's ``pretrained_cfg``), else 224.
    """
    if native is not None and takes(model, (channels, *native)):
        return None
    return configured_size(model) or DEFAULT_SIZE


def configured_size(model: nn.Module) -> int | None:
    """Return the pixels a side in timm's configuration of a model; None if it has no such configuration."""
    configuration = getattr(model, "pretrained_cfg", None) or {}
    size = configuration.get("input_size") if hasattr(configuration, "get") else None
    return int(size[-1]) if size else None


def input_channels(model: nn.Module) -> int:
    """Return the channels of a model's images: those of its first convolution if that has 1 or 3, else 3."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else 3


def example_of(model: nn.Module, image_size: int | None) -> torch.Tensor | None:
    """Return an example input of two images on the meta device.

    Args:
        model: The model; its first convolution says how many channels an image has.
        image_size: Pixels a side; None, which leaves the input to the model's configuration, gives None.
    """
    if image_size is None:
        return None
    return torch.empty(2, input_channels(model), image_size, image_size, device="meta")


def takes(model: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Check on fake tensors whether a model runs on images of this shape (C, H, W)."""
    try:
        with fake_copy(model) as replica, torch.no_grad():
            replica.train()(torch.empty(2, *image_shape))
    except Exception:  # models refuse a size in many ways: an assertion, a shape error, ...
        return False
    return True


def _timm(spec: str, name: str) -> ModelFactory:
    timm = _import("timm", spec)
    if not timm.is_model(name):
        raise _unknown(spec, name, timm.list_models())

    def make(classes: int | None, image_size: int | None) -> nn.Module:
        fixed = (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size
        sized = {"img_size": image_size} if image_size is not None and fixed else {}
        model: nn.Module = timm.create_model(name, pretrained=False, **_classes(classes), **sized)
        return model

    return ModelFactory(spec, name, make)


def _torchvision(spec: str, name: str) -> ModelFactory:
    models = _import("torchvision.models", spec)
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(spec, name, known)

    def make(classes: int | None, image_size: int | None) -> nn.Module:
        sized = {"image_size": image_size} if image_size is not None and name.startswith("vit_") else {}
        model: nn.Module = models.get_model(name, weights=None, **_classes(classes), **sized)
        return model

    sizes = [weights.transforms().crop_size[0] for weights in models.get_model_weights(name)]
    return ModelFactory(spec, name, make, min(sizes, default=None))


def _own(spec: str, name: str) -> ModelFactory:
    match = re.fullmatch(r"cifar_resnet(\d+)", name)
    if match is None:
        raise ModelError(
            f"unknown model {spec!r}", remedy="This package's own is localize:cifar_resnetDEPTH, DEPTH = 6n + 2"
        )
    depth = int(match.group(1))
    if depth < 8 or depth % 6 != 2:
        raise ModelError(f"depth must be 6n + 2, got {depth}", remedy="Take 8, 14, 20, 32, 56, 110, ...")

    def make(classes: int | None, image_size: int | None) -> nn.Module:
        from localize.models import cifar_resnet

        return cifar_resnet(depth, **_classes(classes))

    return ModelFactory(spec, name, make)


def _from_file(spec: str, path: Path, attribute: str) -> ModelFactory:
    if not path.is_file():
        raise ModelError(f"no file {path} for model {spec!r}")
    module_spec = importlib.util.spec_from_file_location(f"_localize_user_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None  # true of every path that ends in .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickle look up their module there
    sys.path.insert(0, str(path.resolve().parent))  # as `python path.py` would
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the user's code
        raise ModelError(f"{path} cannot be run", why=f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    builder = getattr(module, attribute, None)
    if not callable(builder):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise _unknown(spec, attribute, known)

    def make(classes: int | None, image_size: int | None) -> nn.Module:
        if isinstance(builder, nn.Module):  # a module is callable too, but is itself the model
            return builder
        takes_classes = "num_classes" in inspect.signature(builder).parameters
        model: nn.Module = builder(**_classes(classes if takes_classes else None))
        return model

    return ModelFactory(spec, f"{path.stem}-{attribute}", make)


@contextlib.contextmanager
def _empty_parameters() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it; other tensors keep their values."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # None means no change, so tied parameters stay tied
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # torch's annotation says that the hook returns None.
    handle = register_module_parameter_registration_hook(cast(Any, to_meta))
    try:
        yield
    finally:
        handle.remove()


def _classes(count: int | None) -> dict[str, int]:
    return {} if count is None else {"num_classes": count}


def _import(module: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModelError(f"{spec} needs {package}", why=str(error), remedy=f"pip install {package}") from error


def _unknown(spec: str, name: str, known: Sequence[str]) -> ModelError:
    close = difflib.get_close_matches(name, known, n=3)
    return ModelError(
        f"unknown model {spec!r}", remedy=f"Did you mean {', '.join(close)}?" if close else f"Give {FORMS}"
    )
