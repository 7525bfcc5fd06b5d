"""What layers of all kinds refuse, in the same words."""

from torch import Tensor

from fundl._common.arguments import said
from fundl._common.suggestions import hint
from fundl.layer import Layer


def require_at_least_one(**sizes: int) -> None:
    """Raise unless each size, given by the name that the caller knows it by, is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def require_layer(name: str, value: object, *, example: str = "SiLU()") -> None:
    """Raise unless an activation, or another single layer, is one."""
    if isinstance(value, type) and issubclass(value, Layer):
        raise TypeError(f"{name} must be a layer, not the class {value.__name__}: write {value.__name__}()")
    if not isinstance(value, Layer):
        raise TypeError(f"{name} must be a layer, such as {example}, not {said(value)}{hint(value)}")


def require_dtype(claim: str, parameter: Tensor | None, x: Tensor, error: Exception | None = None) -> None:
    """Raise unless the input is of the dtype of a parameter, if there is one.

    The message begins with the claim, such as "Linear's weight is". `error` is what the kernel said, if it was asked first.
    """
    if parameter is not None and x.dtype != parameter.dtype:
        raise TypeError(
            f"{claim} {parameter.dtype}, but the input is {x.dtype}: convert one of them, the input with"
            f" x.to({parameter.dtype}) or the model with tree.cast_to(model, {x.dtype})"
        ) from error
