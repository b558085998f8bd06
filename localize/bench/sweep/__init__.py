"""Sweeps over many models: each is localized, stepped and checked for isolation, in worker processes.

May import the same rooms as ``localize.bench``.
"""
