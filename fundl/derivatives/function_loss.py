"""A loss from a function that gives its value alone."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl._common.tape import refuse_tape
from fundl.derivatives._pulling import require_tensors, value_and_gradient
from fundl.layer import Layer, Prediction, Target
from fundl.tree import describe

Options = ParamSpec("Options")


def from_function(
    function: Callable[Concatenate[Prediction, Target, Options], Tensor],
) -> Callable[Concatenate[Prediction, Target, Options], tuple[Tensor, Prediction]]:
    """The loss of a function that gives its value alone: its gradient with respect to the prediction is found by torch.

        loss(prediction, target) = value, d value / d prediction

    It takes some 300 us longer than a loss whose gradient is written by hand; compiled, about as long.

    Args:
        function: pure, of torch's own operations: from a prediction, a target and options to a number, a tensor without axes.
            The prediction is a tensor, or any tree. It may be one of torch.nn.functional.

    Returns:
        The loss, of the same arguments, which `train_step`, `value_and_grad`, `jit` and `functools.partial` take. What its mean
        divides by, `weighed_by` says on the function.

    Raises:
        TypeError: it is no function; or, when called, it gives something else than a tensor, or is a loss by itself.
        ValueError: when called, it gives a tensor that has axes.

    A focal loss:

    >>> import torch
    >>> from torch.nn import functional
    >>> from fundl import from_function
    >>> @from_function
    ... def focal(prediction, target, gamma=2.0):
    ...     cost = functional.cross_entropy(prediction, target, reduction="none")
    ...     return ((1 - torch.exp(-cost)) ** gamma * cost).mean()
    >>> value, grad = focal(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    >>> value, grad
    (tensor(0.0018), tensor([[-0.0049,  0.0049]]))
    """
    name = suggestions.name_of(function)
    if isinstance(function, Layer | type) or not callable(function):
        raise TypeError(
            "from_function takes a function of a prediction and a target that gives the loss' value, a tensor without axes,"
            f" not {describe(function)}"
        )
    if str(getattr(getattr(function, "func", function), "__module__", "")).startswith("fundl.losses."):
        raise TypeError(f"{name} is a loss by itself, whose gradient is written by hand: take it without from_function")

    def loss(
        prediction: Prediction, target: Target, /, *args: Options.args, **options: Options.kwargs
    ) -> tuple[Tensor, Prediction]:
        refuse_tape(prediction, target)
        require_tensors(prediction, f"{name}: the prediction must be")
        if not any(leaf.is_floating_point() for leaf in tree.trainable_leaves(prediction)):
            raise TypeError(
                f"{name}: the prediction must be floating-point, not {describe(prediction)}: a loss takes the model's outputs,"
                " not the classes found from them"
            )
        return value_and_gradient(lambda moved: _number(name, function(moved, target, *args, **options)), prediction)

    known = ("__name__", "__qualname__", "__doc__")  # and where it is, unless that says that it is a function of torch
    functools.update_wrapper(loss, function, known if suggestions.is_from_torch(function) else (*known, "__module__"), ())
    return loss


def _number(name: str, value: object) -> Tensor:
    if isinstance(value, tuple) and len(value) == 2:
        raise TypeError(
            f"{name} gives two things, {describe(value)}: if they are its value and its gradient, it is a loss as it is; else"
            " return the value alone"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must give the loss' value, a tensor without axes, not {describe(value)}")
    if value.ndim:
        raise ValueError(
            f"{name} gives a tensor of shape {tuple(value.shape)}, but a loss is one number: return its mean(), or its sum()"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must give a floating-point number, not one of {value.dtype}")
    return value
