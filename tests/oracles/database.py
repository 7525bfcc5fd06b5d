"""PyTorch's samples of its operators, of `torch.testing._internal.common_methods_invocations`, behind types."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

Arguments = Mapping[str, object]
"""What an operator is called with, by name."""


class Call(Protocol):
    input: object
    args: Sequence[object]
    kwargs: Mapping[str, object]


class ErrorCall(Protocol):
    sample_input: Call


class Operator(Protocol):
    """An operator and its samples."""

    name: str
    variant_test_name: str
    error_inputs_func: object
    op: "Callable[..., object]"  # type: ignore[explicit-any]  # each operator has a signature of its own

    def sample_inputs(self, device: str, dtype: torch.dtype) -> Iterable[Call]: ...
    def error_inputs(self, device: str) -> Iterable[ErrorCall]: ...


@functools.cache
def operators() -> Mapping[str, Operator]:
    """All operators of this PyTorch, by name."""
    from torch.testing._internal.common_methods_invocations import op_db  # it takes seconds to import

    known = cast("Sequence[Operator]", op_db)  # torch's tests have no types
    return {full_name(operator): operator for operator in known}


def full_name(operator: Operator) -> str:
    return f"{operator.name} {operator.variant_test_name}".strip()


def samples_of(operator: Operator) -> Iterator[Call]:
    """The samples in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield from operator.sample_inputs("cpu", torch.float64)


def errors_of(operator: Operator) -> Iterator[Call]:
    """The samples that the operator refuses."""
    if operator.error_inputs_func is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield from (error.sample_input for error in operator.error_inputs("cpu"))


def arguments(call: Call, names: Sequence[str]) -> dict[str, object]:
    """What the operator is called with, by the names of its first parameters."""
    given = (call.input, *call.args)
    assert len(given) <= len(names), f"{len(given)} arguments, but {names}"
    return {**dict(zip(names, given, strict=False)), **call.kwargs}


def run(operator: Operator, call: Call, replaced: Mapping[int, Tensor]) -> Tensor:
    """The first output of an operator, some tensors of whose call are replaced, each by its id."""

    def new(value: object) -> object:
        return replaced.get(id(value), value)

    kwargs = {name: new(value) for name, value in call.kwargs.items()}
    output = operator.op(new(call.input), *map(new, call.args), **kwargs)
    first: object = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first
