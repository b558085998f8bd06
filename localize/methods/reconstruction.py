"""InfoPro's reconstruction loss: a decoder from features to the network's input, and its weight in each module.

Wang, Ni, Song, Yang, Huang: "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training" (InfoPro),
ICLR 2021. The local loss is ``alpha * reconstruction + beta * criterion``, both weights linear in the index of the
module. It keeps information about the input in features that later modules may need.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F

from localize.methods.base import Context
from localize.methods.layerwise import Place, ramp
from localize.methods.networks.dense import resampling
from localize.methods.networks.features import Features, features_of
from localize.methods.networks.local_loss import Batch, Term, WithTerms
from localize.methods.networks.terms import denormalized, reconstruction_loss
from localize.methods.options import is_number, require_count, require_weight
from localize.plan.records import Auxiliary, LocalModulePlan, LossTerm
from passes.common.fake_tensors import has_values
from passes.common.initializer import Initializer, bare
from passes.errors import InputError, MethodError
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain

NAME = "reconstruction"
"""Name of the loss term in plans."""
_MOST_OUTSIDE = 0.1
"""Largest share of values outside [0, 1], by more than the tolerance, that may be noise (random erasing)."""
_TOLERANCE = 0.01

Numbers = float | tuple[float, ...]
"""One number for all channels, or one for each."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionOptions:
    """Options of the reconstruction loss; the defaults are InfoPro's for ResNet-32 with one layer a module."""

    alpha_first: float = 5.0
    """Weight of the reconstruction loss in the first module."""
    alpha_last: float = 0.2
    """Weight of the reconstruction loss in the last module but one; in between it is linear in the module's index."""
    beta_first: float = 0.05
    """Weight of the criterion in the first module."""
    beta_last: float = 0.5
    """Weight of the criterion in the last module but one. The output loss of the last module has weight 1."""
    decoder_width: int = 12
    """Channels between the decoder's two convolutions."""
    mean: Numbers = 0.0
    """What was subtracted from images in [0, 1]: a number, or one for each channel."""
    std: Numbers = 1.0
    """What images were divided by after the mean was subtracted: a number, or one for each channel."""

    def __post_init__(self) -> None:
        for name in ("alpha_first", "alpha_last", "beta_first", "beta_last"):
            require_weight(name, getattr(self, name))
        require_count("decoder_width", self.decoder_width, 1)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has lists only
                value = tuple(value)
                object.__setattr__(self, name, value)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(is_number(v) and (v > 0 or name == "mean") for v in numbers):
                kind = "number > 0" if name == "std" else "number"
                raise MethodError(f"{name} must be a {kind}, or one for each channel, got {value!r}")


def require_images(context: Context, options: ReconstructionOptions, method: str) -> None:
    """Refuse networks whose input cannot be reconstructed.

    Raises:
        MethodError: The input is not a batch of images, or has another number of channels than ``mean`` or ``std``.
    """
    image = context.network.shapes.input
    if image.layout != "NCHW" or not image.dtype.is_floating_point:
        raise MethodError(
            f"method {method!r} reconstructs images (N, C, H, W), and the model's input is {image}",
            remedy="Use method='auglocal', 'dgl' or 'bp'",
        )
    for name, value in (("mean", options.mean), ("std", options.std)):
        if isinstance(value, tuple) and len(value) != image.channels:
            raise MethodError(
                f"{name}={value!r} has {len(value)} numbers, and images have {image.channels} channels",
                remedy="Give one for each channel, or one number for all",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Decoding:
    """A decoder's layers: interpolation, 3x3 convolution + norm + ReLU, 3x3 convolution."""

    features: Features
    image: TensorSpec
    """The network's input."""
    width: int
    """Channels between the two convolutions."""

    @property
    def _narrow(self) -> Plain:
        read = dataclasses.replace(
            self.image, shape=(self.image.shape[0], self.features.spec.channels, *self.image.spatial)
        )
        return Plain("conv3x3", read, self.width, 1)

    def term(self, options: ReconstructionOptions, weight: float) -> LossTerm:
        """Describe the loss term and its decoder for the plan."""
        narrow, channels = self._narrow, self.image.channels
        weights = 9 * self.width * channels
        size = "x".join(map(str, self.image.spatial))
        words = [
            *self.features.words(),
            f"bilinear({size})",
            f"conv3x3({narrow.input.channels}, {self.width})",
            "batch_norm",
            f"conv3x3({self.width}, {channels})",
            f"sigmoid, of images * {_words(options.std)} + {_words(options.mean)}",
        ]
        # Unlike plain blocks, the first convolution has a bias too.
        return LossTerm(
            NAME,
            weight,
            narrow.params + self.width + weights + channels,
            narrow.macs + weights * math.prod(self.image.spatial),
            " > ".join(words),
        )

    def build(self, draw: Initializer) -> Decoder:
        """Build the decoder with fresh weights."""
        height, width = self.image.spatial
        return Decoder(self.features, self.image.channels, self.width, (height, width), draw)


def _words(value: Numbers) -> str:
    numbers = [f"{v:g}" for v in value] if isinstance(value, tuple) else [f"{value:g}"]
    return f"({', '.join(numbers)})" if len(numbers) > 1 else numbers[0]


class Decoder(nn.Module):
    """Map features to the logits of an image's values: (N, C, h, w) -> (N, channels, H, W).

    Args:
        features: What the decoder reads.
        channels: Channels of the image.
        width: Channels between the two convolutions.
        size: Height and width of the image that was planned for.
        draw: Source of weights.
    """

    def __init__(self, features: Features, channels: int, width: int, size: tuple[int, int], draw: Initializer) -> None:
        super().__init__()
        self.size = size
        read, flat = features.spec.channels, features.flat
        self.grid = nn.Sequential(*([nn.Unflatten(1, (read, 1, 1))] if flat else features.build()))
        self.convolutions = nn.Sequential(
            draw.plain_(bare(nn.Conv2d, read, width, 3, padding=1)),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            draw.plain_(bare(nn.Conv2d, width, channels, 3, padding=1)),
        )

    def forward(self, features: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the logits of an image of ``size``, by default the planned one; their sigmoid is the image."""
        grown = F.interpolate(self.grid(features), size or self.size, mode=resampling(2), align_corners=True)
        logits: torch.Tensor = self.convolutions(grown)
        return logits

    def extra_repr(self) -> str:
        """Return the resolution."""
        return "x".join(map(str, self.size))


class Reconstruction(Term):
    """Binary cross-entropy between the decoder's image and the network's input.

    Args:
        network: The decoder.
        mean: What was subtracted from images in [0, 1].
        std: What images were divided by after that.
    """

    def __init__(self, network: Decoder, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        self.network = network
        self.mean = mean if isinstance(mean, tuple) else (mean,)
        self.std = std if isinstance(std, tuple) else (std,)
        self.checked = False

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the term, a scalar.

        Raises:
            InputError: The images of the first batch are outside [0, 1] after their normalization is undone.
        """
        if not self.checked and has_values(batch.x):
            # Only once: reading values makes a GPU wait.
            check_images(batch.x, self.mean, self.std, batch.name)
            self.checked = True
        height, width = batch.x.shape[2:]
        images = denormalized(batch.x.detach(), self.mean, self.std)
        return reconstruction_loss(self.network(features, (height, width)), images)

    def extra_repr(self) -> str:
        """Return the normalization."""
        return f"mean={self.mean}, std={self.std}"


def check_images(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], name: str) -> None:
    """Refuse images that were normalized by another mean and std than these; a few values may be noise.

    Args:
        images: Normalized images (N, C, H, W).
        mean: What was subtracted from images in [0, 1], for each channel or for all.
        std: What they were divided by after that.
        name: Name of the local module, for the error.

    Raises:
        InputError: More than a tenth of the values are outside [0, 1] after the normalization is undone.
    """
    shift, scale = (images.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    values = images.detach() * scale + shift
    outside = float(((values < -_TOLERANCE) | (values > 1 + _TOLERANCE)).double().mean())
    if outside > _MOST_OUTSIDE:
        raise InputError(
            f"{outside:.0%} of the images' values are outside [0, 1], where InfoPro's reconstruction loss has them",
            where=name,
            why=f"images * {_words(std)} + {_words(mean)} goes from {float(values.min()):.3g} to "
            f"{float(values.max()):.3g}",
            remedy="Give the mean= and std= that images were normalized with: numbers, or tuples of one a channel",
        )


def with_reconstruction(
    context: Context, auxiliary: Auxiliary, options: ReconstructionOptions, place: Place
) -> Auxiliary:
    """Return the planned auxiliary network with a decoder beside it, both losses weighted."""
    alpha = ramp(options.alpha_first, options.alpha_last, place)
    term = _decoding(context, options, place.layer).term(options, alpha)
    return dataclasses.replace(
        auxiliary,
        params=auxiliary.params + term.params,
        macs=auxiliary.macs + term.macs,
        weight=ramp(options.beta_first, options.beta_last, place),
        terms=(*auxiliary.terms, term),
    )


def build_reconstruction(
    context: Context,
    module: LocalModulePlan,
    classifier: nn.Module,
    options: ReconstructionOptions,
    draw: Initializer,
) -> WithTerms:
    """Build the decoder beside a classifier, with the weights of the plan.

    Args:
        context: What the module was planned on.
        module: A module planned by :func:`with_reconstruction`.
        classifier: The module's auxiliary network without decoder.
        options: The options.
        draw: Source of the decoder's weights.
    """
    auxiliary = module.auxiliary
    assert auxiliary is not None, "no auxiliary network was planned"
    (alpha,) = (term.weight for term in auxiliary.terms if term.name == NAME)
    term = Reconstruction(_decoding(context, options, module.layers[-1]).build(draw), options.mean, options.std)
    return WithTerms(classifier, auxiliary.weight, {NAME: (alpha, term)})


def _decoding(context: Context, options: ReconstructionOptions, layer: int) -> Decoding:
    return Decoding(features_of(context.network, layer), context.network.shapes.input, options.decoder_width)
