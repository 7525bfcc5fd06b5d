"""Settings for each spatial axis: layers have one number, or a tuple of one for each axis; torch.nn asks for tuples."""

from collections.abc import Sequence

from fundl._common.kernels import PerAxis
from fundl.interop.torch_nn.pairs import Refused

One = tuple[int]
Two = tuple[int, int]
Three = tuple[int, int, int]


def same_for_all(setting: int | Sequence[int]) -> PerAxis:
    """A setting of a module as layers have it by default: as one number, if it is the same for all axes."""
    if isinstance(setting, int):
        return setting
    return setting[0] if len(set(setting)) == 1 else tuple(setting)


def one_axis(setting: int | Sequence[int]) -> int:
    """The setting of a module's only axis."""
    (only,) = _each(setting, 1)
    return only


def two_axes(setting: int | Sequence[int]) -> int | Two:
    """The setting of a module's two axes, as one number if it is the same for both."""
    first, second = _each(setting, 2)
    return first if first == second else (first, second)


def three_axes(setting: int | Sequence[int]) -> int | Three:
    """The setting of a module's three axes, as one number if it is the same for all."""
    first, second, third = _each(setting, 3)
    return first if first == second == third else (first, second, third)


def _each(setting: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """The setting of a module for each of its axes; one in brackets is that of all, as it is for torch's operators."""
    numbers = (setting,) if isinstance(setting, int) else tuple(setting)
    if len(numbers) not in {1, axes}:
        raise Refused(f"{numbers} is no setting of {axes} {'axis' if axes == 1 else 'axes'}: give a number for each, or one")
    return numbers if len(numbers) == axes else numbers * axes


def one(setting: PerAxis) -> One:
    """A setting of a layer, for its only axis."""
    (only,) = (setting,) if isinstance(setting, int) else setting
    return (only,)


def two(setting: PerAxis) -> Two:
    """A setting of a layer, for each of two axes."""
    first, second = (setting,) * 2 if isinstance(setting, int) else setting
    return first, second


def three(setting: PerAxis) -> Three:
    """A setting of a layer, for each of three axes."""
    first, second, third = (setting,) * 3 if isinstance(setting, int) else setting
    return first, second, third
