"""Settings for each spatial axis: layers have one number, or a tuple of one for each axis; torch.nn asks for tuples."""

from collections.abc import Sequence

from fundl.kernels import PerAxis

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
    return setting if isinstance(setting, int) else setting[0]


def two_axes(setting: int | Sequence[int]) -> int | Two:
    """The setting of a module's two axes, as one number if it is the same for both."""
    first, second = two(setting if isinstance(setting, int) else tuple(setting))
    return first if first == second else (first, second)


def three_axes(setting: int | Sequence[int]) -> int | Three:
    """The setting of a module's three axes, as one number if it is the same for all."""
    first, second, third = three(setting if isinstance(setting, int) else tuple(setting))
    return first if first == second == third else (first, second, third)


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
