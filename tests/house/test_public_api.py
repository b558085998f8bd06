"""The public API, frozen: a change here is a change for every user, and belongs in the notes of a release."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

import localize
import localize.models
from localize import methods

NAMES = [
    "METHODS",
    "AdaptError",
    "Auxiliary",
    "AuxiliaryBlock",
    "BudgetError",
    "CaptureError",
    "Cascade",
    "ExportError",
    "InputError",
    "Layer",
    "LeafPolicy",
    "LocalGraphModule",
    "LocalModule",
    "LocalModulePlan",
    "LocalOutput",
    "LocalizeError",
    "LossTerm",
    "MemoryBudget",
    "MemoryForecast",
    "MethodError",
    "Obstacle",
    "OutOfMemoryError",
    "PartitionError",
    "Plan",
    "PlanError",
    "Prediction",
    "Runtime",
    "SplitError",
    "TensorSpec",
    "check",
    "localize",
]


def test_all_is_exactly_this() -> None:
    assert sorted(localize.__all__) == sorted(NAMES)
    assert [name for name in localize.__all__ if not hasattr(localize, name)] == []


LAZY = """
import pickle, sys
import localize
assert "torch" not in sys.modules
assert {"localize", "Plan", "__version__"} <= set(dir(localize))
assert not hasattr(localize, "nothing") and not hasattr(localize, "_nothing")
assert localize.methods.__name__ == "localize.methods"  # a room, as if it had been imported
from localize import METHODS, Plan, localize as function
assert localize.localize is function and localize.METHODS is METHODS and callable(function)
import localize.cli.main, localize.export, localize.obstacles
assert localize.localize is function and localize.check is localize.obstacles.check
for value in (function, Plan, localize.LocalizeError):
    assert pickle.loads(pickle.dumps(value)) is value
space = {}
exec("from localize import *", space)
assert set(localize.__all__) <= set(space)
"""


def test_names_are_found_on_first_use() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", LAZY], check=False, timeout=120)
    assert done.returncode == 0


def _parameters(function: Any) -> list[tuple[str, str, Any]]:
    kinds: dict[Any, str] = {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [(p.name, kinds[p.kind], p.default) for p in inspect.signature(function).parameters.values()]


REQUIRED = inspect.Parameter.empty


def test_signature_of_localize() -> None:
    assert _parameters(localize.localize) == [
        ("model", "", REQUIRED),
        ("method", "", "auglocal"),
        ("d", "keyword", 4),
        ("example_inputs", "keyword", None),
        ("modules", "keyword", None),
        ("balance", "keyword", "layers"),
        ("max_cut", "keyword", None),
        ("granularity", "keyword", "minimal"),
        ("output", "keyword", None),
        ("verify", "keyword", True),
        ("criterion", "keyword", None),
        ("outputs", "keyword", None),
        ("output_criterion", "keyword", None),
        ("seed", "keyword", None),
        ("recompute", "keyword", False),
        ("memory_budget", "keyword", None),
        ("batch_size", "keyword", None),
        ("runtime", "keyword", "plain"),
        ("options", "**", REQUIRED),
    ]


def test_signature_of_check() -> None:
    assert _parameters(localize.check) == [
        ("model", "", REQUIRED),
        ("example_inputs", "keyword", None),
        ("max_cut", "keyword", None),
        ("granularity", "keyword", "minimal"),
        ("output", "keyword", None),
        ("joint", "keyword", False),
        ("verify", "keyword", True),
    ]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("steps", ["self", "x", "y"]),
        ("loss", ["self", "x", "y"]),
        ("predictions", ["self", "x"]),
        ("ensemble", ["self", "x"]),
        ("parameters_of", ["self", "index"]),
    ],
)
def test_signatures_of_the_local_graph_module(method: str, expected: list[str]) -> None:
    found = _parameters(getattr(localize.LocalGraphModule, method))
    assert found == [(name, "", REQUIRED) for name in expected]


def test_signatures_of_exports() -> None:
    shown = [("view", "keyword", "full"), ("module", "keyword", None), ("fold", "keyword", False)]
    assert _parameters(localize.LocalGraphModule.export) == [
        ("self", "", REQUIRED),
        ("path", "", REQUIRED),
        ("format", "keyword", None),
        ("view", "keyword", None),
        *shown[1:],
        ("force", "keyword", False),
    ]
    assert _parameters(localize.LocalGraphModule.to_networkx) == [("self", "", REQUIRED), *shown]
    assert _parameters(localize.LocalGraphModule.add_graph) == [
        ("self", "", REQUIRED),
        ("writer", "", REQUIRED),
        shown[0],
        shown[2],
    ]


RECORDS = {
    localize.Plan: [
        "model",
        "method",
        "options",
        "input",
        "output",
        "prediction",
        "layers",
        "classifier_params",
        "classifier_macs",
        "modules",
        "opaque",
        "original",
        "budget",
        "forecaster",
        "borders",
    ],
    localize.LocalModulePlan: ["index", "name", "layers", "auxiliary", "parameters", "note", "cascade", "recompute"],
    localize.Auxiliary: [
        "selected",
        "depth",
        "params",
        "macs",
        "blocks",
        "head",
        "merged",
        "weight",
        "terms",
        "groups",
    ],
    localize.LossTerm: ["name", "weight", "params", "macs", "network"],
    localize.Cascade: ["reaches", "independent", "cascaded", "auxiliary", "parameters"],
    localize.AuxiliaryBlock: ["source", "in_channels", "out_channels", "stride", "projection", "adapter", "kind"],
    localize.Layer: ["index", "name", "params", "macs", "activation_bytes", "input", "output", "width"],
    localize.Prediction: ["kind", "outputs", "size", "layout"],
    localize.TensorSpec: ["shape", "dtype", "layout"],
    localize.Obstacle: ["path", "source", "what", "remedy"],
}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_records_are_frozen_and_have_these_fields(record: Any) -> None:
    assert [field.name for field in dataclasses.fields(record)] == RECORDS[record]
    assert record.__dataclass_params__.frozen


def test_local_output() -> None:
    assert localize.LocalOutput._fields == ("name", "loss", "logits")


RECONSTRUCTION = {
    "alpha_first": 5.0,
    "alpha_last": 0.2,
    "beta_first": 0.05,
    "beta_last": 0.5,
    "decoder_width": 12,
    "mean": 0.0,
    "std": 1.0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "auglocal": {
        "d": 4,
        "tau": 0.5,
        "last": "joint",
        "head_norm": True,
        "pool": "average",
        "head": "linear",
        "head_width": None,
        "selection": "uniform",
        "width": None,
        "downsampling": "deferred",
        "max_aux_macs": None,
        "aux_init": "fresh",
    },
    "bp": {},
    "checkpoint": {},
    "dgl": {"convolutions": 3, "hidden": 2, "hidden_width": None},
    "gn-dgl": {
        "groups": 2,
        "stop_gradient": True,
        "diversity": 0.5,
        "temperature": 3.0,
        "auxiliary": "conv",
        "hidden": 128,
        "head": "decoupled",
    },
    "infopro": {"hidden_width": 128, **RECONSTRUCTION},
    "predsim": {"beta": 0.99, "pooled_width": 512, "zero_init": False},
}
MLAAN = {
    "variant": "paper",
    "mlm": True,
    "lam": True,
    "k": 3,
    "independent": 0.5,
    "cascaded": 0.5,
    "p": 4,
    "leap": "independent",
    "momentum": 0.995,
}
OPTIONS["mlaan"] = {**MLAAN, "pool": "average"}
OPTIONS["dgl+mlaan"] = {**MLAAN, **OPTIONS["dgl"]}
OPTIONS["infopro+mlaan"] = {**MLAAN, **OPTIONS["infopro"]}
OPTIONS["auglocal+infopro"] = {**OPTIONS["auglocal"], **RECONSTRUCTION}


def test_methods_and_their_options() -> None:
    assert set(localize.METHODS) == set(OPTIONS)
    for name, options in OPTIONS.items():
        assert dataclasses.asdict(methods.get_method(name).Options()) == options


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Error")])
def test_every_error_is_a_localize_error_and_a_value_error(name: str) -> None:
    assert issubclass(getattr(localize, name), localize.LocalizeError)
    assert issubclass(getattr(localize, name), ValueError)


def test_models() -> None:
    assert sorted(localize.models.__all__) == ["CifarResNet", "cifar_resnet"]
    assert _parameters(localize.models.cifar_resnet) == [
        ("depth", "", REQUIRED),
        ("num_classes", "", 10),
        ("in_channels", "", 3),
        ("width", "", 16),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_is_documented(name: str) -> None:
    value = getattr(localize, name)
    if name != "METHODS":
        assert inspect.getdoc(value)
    if inspect.isclass(value):
        own = {
            key: member for key, member in vars(value).items() if not key.startswith("_") and inspect.isfunction(member)
        }
        assert [key for key, member in own.items() if not inspect.getdoc(member)] == []


PROBE = """
import json, logging, sys, warnings
before = (list(warnings.filters), logging.getLogger().level, len(logging.getLogger().handlers))
import torch
torch_only = (list(warnings.filters), logging.getLogger().level, len(logging.getLogger().handlers))
random = torch.get_rng_state()
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
import localize
import localize.models
named = [getattr(localize, name) for name in localize.__all__]
after = (list(warnings.filters), logging.getLogger().level, len(logging.getLogger().handlers))
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "logging": after[1:] == torch_only[1:] == before[1:],
    "warnings": after[0] == torch_only[0],
    "torch": bool(torch.equal(random, torch.get_rng_state())) and threads == torch.get_num_threads()
    and dtype == torch.get_default_dtype(),
}))
"""


def test_importing_is_light_and_has_no_side_effects() -> None:
    command = [sys.executable, "-W", "error", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert done.stderr == ""
    heavy = {"torchvision", "timm", "matplotlib", "typer", "rich", "sklearn", "safetensors", "PIL", "accelerate"}
    assert heavy.isdisjoint(found["modules"])
    assert found["logging"], "importing localize changed the root logger"
    assert found["warnings"], "importing localize changed the warning filters"
    assert found["torch"], "importing localize changed torch's generator or defaults"
