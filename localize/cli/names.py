"""Names for help and completion, known without loading torch; tests compare each table with the code."""

from __future__ import annotations

from localize.methods import RULES

METHODS = {name: rule.words for name, rule in RULES.items()}
"""Learning rules, in a few words each."""

FORMATS = {
    "dot": "a graph in Graphviz's language",
    "svg": "a picture, by Graphviz",
    "png": "a picture of pixels, by Graphviz",
    "pdf": "a picture for print, by Graphviz",
    "html": "a page for browsers, in one file",
    "json": "the plan, every decision of it",
    "graphml": "a graph for networkx, Gephi or yEd",
    "onnx": "the network for other runtimes and viewers",
    "pt2": "a program of torch.export",
    "py": "Python source that imports torch alone",
}
"""Forms of export, each its file's suffix, in the words of :data:`localize.export.FORMATS`."""

VIEWS = {
    "primary": "the primary network alone",
    "local": "local modules, each with its loss",
    "auxiliary": "auxiliary networks, with local modules as single boxes",
    "full": "all of it",
}
"""What an export shows."""

OPTIMIZERS = ("sgd", "adam", "adamw")
STEPS = {"batch": "all weights at the end of the step", "module": "each module's right after its own backward"}
CLIP_BY = {"global": "the norm of all gradients", "module": "the norm of each module's"}
RUNTIMES = {
    "plain": "torch's own operations, one after the other",
    "auto": "what is faster on the device",
    "compile": "alike blocks compiled once",
}
GRANULARITIES = {"minimal": "the smallest units", "block": "blocks that a network lists stay whole"}
AUTOCAST = ("bfloat16", "float16")
SOURCES = ("timm", "torchvision", "all")
DATA = {"digits": "scikit-learn's, embedded", "fashion-mnist:": "folder of the four idx files"}
SIZES = (8, 14, 20, 32, 44, 56, 110)
"""Depths of the package's own CIFAR ResNets that papers use."""
