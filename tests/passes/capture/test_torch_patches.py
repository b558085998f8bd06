"""Patches of torch while tracing: what is recorded, what is refused, and that all of them are taken away."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from passes.capture.size_decisions import Undecided
from passes.capture.torch_patches import Builtins, patched, slow_attention


class Recorder:
    """A tracer that notes what it is told."""

    def __init__(self, *, numbers: bool = True) -> None:
        self.deciding = False
        self.numbers = numbers
        self.assigned: list[str] = []
        self.graph = fx.Graph()
        self.x = fx.Proxy(self.graph.placeholder("x"), fx.proxy.GraphAppendingTracer(self.graph))

    def assign(self, owner: nn.Module, name: str, value: fx.Proxy) -> None:
        self.assigned.append(name)

    def is_number(self, obj: fx.Proxy) -> bool:
        return self.numbers

    def create_proxy(
        self, kind: str, target: fx.node.Target, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        return self.x.tracer.create_proxy(kind, target, args, kwargs)

    @property
    def targets(self) -> list[object]:
        return [node.target for node in self.graph.nodes if node.op == "call_function"]


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


def test_an_assignment_to_a_buffer_is_recorded() -> None:
    recorder, norm = Recorder(), nn.BatchNorm1d(2)
    with patched(recorder):
        norm.running_mean = recorder.x  # type: ignore[assignment]
    assert recorder.assigned == ["running_mean"]


def test_an_assignment_of_a_tensor_is_made() -> None:
    recorder, norm, mean = Recorder(), nn.BatchNorm1d(2), torch.ones(2)
    with patched(recorder):
        norm.running_mean = mean
    assert norm.running_mean is mean
    assert recorder.assigned == []


def test_a_tensor_made_of_sizes_is_recorded() -> None:
    recorder = Recorder()
    with patched(recorder):
        torch.zeros(recorder.x, 3)  # type: ignore[call-overload]
    assert recorder.targets == [torch.zeros]


def test_a_tensor_made_of_numbers_is_made() -> None:
    recorder = Recorder()
    with patched(recorder):
        assert torch.zeros(2, 3).shape == (2, 3)
    assert recorder.targets == []


def test_a_function_with_a_backward_of_its_own_is_refused() -> None:
    recorder = Recorder()
    with patched(recorder), pytest.raises(Undecided, match="Twice"):
        Twice.apply(recorder.x)


def test_such_a_function_runs_on_tensors() -> None:
    with patched(Recorder()):
        assert Twice.apply(torch.ones(1)) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_function_is_recorded_as_if_it_were_not(reentrant: bool) -> None:
    recorder = Recorder()
    with patched(recorder):
        checkpoint(torch.relu, recorder.x, use_reentrant=reentrant, preserve_rng_state=False)
    assert recorder.targets == [torch.relu]


def test_autocast_is_refused() -> None:
    with patched(Recorder()), pytest.raises(Undecided, match="autocast"), torch.autocast("cpu"):
        pass


def test_autocast_is_entered_where_code_runs_on_values() -> None:
    recorder = Recorder()
    recorder.deciding = True
    with patched(recorder), torch.autocast("cpu"):
        assert torch.is_autocast_enabled("cpu")


def test_all_patches_are_taken_away_after_an_error() -> None:
    before = torch.zeros, nn.Module.__setattr__, torch.autocast.__enter__, torch.autograd.Function.__dict__["apply"]
    with pytest.raises(KeyError), patched(Recorder()):
        raise KeyError
    after = torch.zeros, nn.Module.__setattr__, torch.autocast.__enter__, torch.autograd.Function.__dict__["apply"]
    assert before == after


def test_the_fast_path_of_attention_is_off_inside() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with slow_attention():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is before


def length_of(x: object) -> int:
    return len(x)  # type: ignore[arg-type]


def whole(x: object) -> int:
    return int(x)  # type: ignore[call-overload, no-any-return]


def test_len_and_int_of_a_proxy_are_recorded() -> None:
    recorder = Recorder()
    builtins = Builtins(recorder)
    builtins.replace_in(length_of)
    try:
        length_of(recorder.x)
        whole(recorder.x)
    finally:
        builtins.restore()
    assert recorder.targets == [len, int]


def test_len_and_int_of_other_values_are_as_ever() -> None:
    builtins = Builtins(Recorder())
    builtins.replace_in(length_of)
    try:
        assert (length_of([1, 2]), whole("7")) == (2, 7)
        assert isinstance(7, globals()["int"])
    finally:
        builtins.restore()


def test_len_and_int_are_put_back() -> None:
    builtins = Builtins(Recorder())
    builtins.replace_in(length_of)
    builtins.restore()
    assert not {"len", "int"} & globals().keys()


def test_code_of_torch_is_left_alone() -> None:
    builtins = Builtins(Recorder())
    builtins.replace_in(nn.Linear.forward)
    assert builtins.changed == []
