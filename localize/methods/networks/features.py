"""What an auxiliary network reads: the output of a local layer as an image, whatever layout the layer has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from localize.methods.networks.dense import Grid, ToGrid, grid_of_features
from passes.ir import Network, TensorSpec


@dataclass(frozen=True, slots=True)
class Features:
    """The output of a local layer as an image (N, C, H, W); or (N, C), where it has no positions."""

    spec: TensorSpec
    """Shape of the image, or of the features without positions."""
    grid: Grid
    """Where the layer's output holds the positions of the image."""

    @property
    def flat(self) -> bool:
        """True where there are no positions."""
        return self.spec.layout == "NC"

    def words(self) -> list[str]:
        """Describe the rearrangement to an image in words; an empty list if none is needed."""
        return [] if self.grid.plain or self.flat else ["tokens as image" if self.grid.layout == "NLC" else "as NCHW"]

    def build(self) -> list[nn.Module]:
        """Build the module that rearranges the layer's output to an image; an empty list if none is needed."""
        return [] if self.grid.plain or self.flat else [ToGrid(self.grid, added=True)]


def features_of(network: Network, layer: int) -> Features:
    """Return the output of a local layer as an image.

    Images with channels last and tokens are rearranged. The mean of class tokens and registers is added at every
    position: left out, these tokens would learn from the output loss alone.

    Args:
        network: The primary network, such as ``context.network``.
        layer: Index of the local layer.

    Raises:
        MethodError: The output is a volume, or its layout is unknown.
    """
    output, image = network.layers[layer].output, network.shapes.input
    grid = grid_of_features(output, image.spatial if len(image.spatial) == 2 else ())
    if output.layout == "NC":
        return Features(output, grid)
    return Features(replace(output, shape=(output.shape[0], output.channels, *grid.size), layout="NCHW"), grid)
