"""A layer from a function of parameters and an input."""

import inspect
from collections.abc import Callable
from typing import Generic, NamedTuple, Self, cast, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common import suggestions
from fundl._common.modes import no_grad
from fundl._common.tape import off_tape
from fundl.derivatives._pulling import pulled, require_tensors
from fundl.layer import Layer
from fundl.tree import describe

Params = TypeVar("Params", default=object)
X = TypeVar("X", default=Tensor)
Y = TypeVar("Y", default=Tensor)
Given = TypeVar("Given")
In = TypeVar("In")
Out = TypeVar("Out")


class _Point(NamedTuple):
    """Where the function is differentiated."""

    params: object
    x: object


@final
@attrs.frozen(eq=False)
class FunctionLayer(Layer[X, X, Y], Generic[Params, X, Y]):
    """A pure function of torch as a layer: y = function(params, x).

    Its vjp, which torch finds: grad_params = (dy/dparams)^T grad, grad_x = (dy/dx)^T grad. Backward computes the function once
    more, as `Checkpoint` does: a step takes some 4/3 of the time that a backward with all residuals would take, and less
    memory.

    Made by `layer_from_function`, which checks what it is given, and by `fundl.interop.torch_nn.as_layer`.

    Args:
        params: a tree of tensors, the parameters; fields of records in it that are buffers are not trained.
        function: pure, of torch's own operations: from the parameters and an input to an output. The same function and the
            same numbers give the same output.

    Shape:
        as the function has it

    Residuals:
        The input, shared.

    Raises:
        TypeError: the function gives something else than tensors.
    """

    takes_integers = True  # if the function does

    params: Params
    function: Callable[[Params, X], Y]

    def __attrs_post_init__(self) -> None:
        _require_function(self.function)
        require_tensors(self.params, f"the parameters of {suggestions.name_of(self.function)} must be")

    @override
    def forward(self, x: X) -> tuple[Y, X]:
        with no_grad():
            y = self.function(self.params, x)
            require_tensors(y, f"{suggestions.name_of(self.function)}(params, x) must give")
            return tree.map(off_tape, y), x  # it may give what it was given

    @override
    def backward(self, residuals: X, grad: Y) -> tuple[Self, X]:
        found = pulled(self._at, _Point(self.params, residuals), grad)
        return self.gradient(found.params), cast("X", found.x)  # each is like what it is the gradient of

    @override
    def backward_params(self, residuals: X, grad: Y) -> Self:
        return self.gradient(pulled(lambda params: self.function(params, residuals), self.params, grad))

    @override
    def backward_input(self, residuals: X, grad: Y) -> X:
        return pulled(lambda x: self.function(self.params, x), residuals, grad)

    def _at(self, point: _Point) -> Y:
        return self.function(cast("Params", point.params), cast("X", point.x))


def layer_from_function(function: Callable[[Given, In], Out], params: Given) -> FunctionLayer[Given, In, Out]:
    """The layer y = function(params, x), whose backward torch finds: a `FunctionLayer`.

    It is a layer like any other: it is composed, trained, compiled, saved, made an ensemble, and its gradient has its type.
    `check_vjp` says whether the function is pure.

    Args:
        function: pure, of torch's own operations: from the parameters and an input to an output. Written at the top of a
            module, and not inside of another function, it can be saved by its name, see `saved_as`.
        params: a tree of tensors: a tensor, a dict, a tuple, a NamedTuple, a record, or None for no parameters.

    Raises:
        TypeError: `function` is no function, or uses a module of torch.nn or a tensor with requires_grad, which would not be
            trained; or the parameters are no tree of tensors.

    >>> import torch
    >>> from fundl import ReLU, apply, compose, layer_from_function, linear, vjp
    >>> def bump(params, x):
    ...     return params["height"] * torch.exp(-((x - params["place"]) ** 2))
    >>> layer = layer_from_function(bump, {"height": torch.tensor(2.0), "place": torch.tensor(0.0)})
    >>> apply(layer, torch.tensor([0.0, 1.0]))
    tensor([2.0000, 0.7358])
    >>> grads, grad_x = vjp(layer, torch.tensor([0.0, 1.0]), torch.ones(2))
    >>> grads.params["height"], grad_x
    (tensor(1.3679), tensor([-0.0000, -1.4715]))
    """
    _require_closed(function)
    return FunctionLayer[Given, In, Out](params, function)  # which mypy, with the plugin, does not find by itself


def _require_function(function: object) -> None:
    if suggestions.is_module(function):
        raise TypeError(
            f"layer_from_function takes a function, not the module {suggestions.name_of(function)} of torch.nn: write"
            " fundl.interop.torch_nn.as_layer(module), which makes a layer of it, with its parameters"
        )
    if isinstance(function, Layer | type) or not callable(function):
        raise TypeError(f"layer_from_function(function, params) takes a function of both, not {describe(function)}")


def _require_closed(function: object) -> None:
    """Raise if a function uses parameters that it is not given."""
    if not inspect.isfunction(function):
        return
    used = inspect.getclosurevars(function)
    for name, value in {**used.globals, **used.nonlocals}.items():
        if suggestions.is_module(value) and not isinstance(value, type):
            raise TypeError(
                f"{function.__name__} uses {name}, a module of torch.nn, whose parameters would not be trained: write"
                f" fundl.interop.torch_nn.as_layer({name}), or give its tensors in params"
            )
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(
                f"{function.__name__} uses {name}, a tensor with requires_grad, which would not be trained: give it in params,"
                f" or write {name}.detach() for a constant"
            )
