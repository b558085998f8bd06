"""Runs a localized model: data, recipe, training loop, checkpoints, memory accounting. Nothing in here prints."""
