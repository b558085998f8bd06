"""What can go wrong while training, apart from what the compiler itself refuses."""

from __future__ import annotations

from passes.errors import LocalizeError


class OptionError(LocalizeError):
    """An option of the runtime is unknown or out of range."""


class DataError(LocalizeError):
    """A data source cannot be read, or does not fit the model."""


class ModelError(LocalizeError):
    """A model named in a string cannot be built."""


class RecipeError(LocalizeError):
    """A training setting is out of range or unknown."""


class CheckpointError(LocalizeError):
    """A checkpoint cannot be read, or belongs to another run."""


class TrainingError(LocalizeError):
    """A run cannot go on: a loss is no longer finite."""


class SweepError(LocalizeError):
    """A sweep cannot run, or its file belongs to another."""


class BenchError(LocalizeError):
    """A benchmark cannot be run as asked."""
