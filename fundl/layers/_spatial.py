"""What layers over one, two or three spatial axes share: one docstring for all, settings for each axis, what they refuse.

A family of layers, such as max pooling, is a class that computes, over any number of axes, with a short class for each number.
The family's docstring is a text for all of them. In braces stands what is said of one axis, to be said of each: over two axes,
{i s + u} reads i s + u, j s + v.
"""

import inspect
from typing import ClassVar, Final, Generic

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.kernels import PerAxis
from fundl.layer import Layer
from fundl.shapes import AnySize

Residuals = TypeVar("Residuals")

# Sizes that a layer's type states, named like the fields that hold them
KernelSize = TypeVar("KernelSize", bound=PerAxis, covariant=True, default=AnySize)
Stride = TypeVar("Stride", bound=PerAxis, covariant=True, default=AnySize)
Dilation = TypeVar("Dilation", bound=PerAxis, covariant=True, default=AnySize)

# Sizes of the input
Batch = TypeVar("Batch")
Channels = TypeVar("Channels")
Depth = TypeVar("Depth")
Height = TypeVar("Height")
Width = TypeVar("Width")
Length = TypeVar("Length")

# For each axis the letters of a window's place, of a place within the window, of an element's place, and of the axis itself
_LETTERS: Final = {1: ("iumL",), 2: ("iumH", "jvnW"), 3: ("htlD", "iumH", "jvnW")}


# --- Docstrings --------------------------------------------------------------------------------------------------------


class _Words(dict[str, str]):
    """The words of a number of axes, for `str.format_map`."""

    def __init__(self, axes: int) -> None:
        super().__init__(
            each="" if axes == 1 else ", one for all axes or a tuple of one for each",
            integer="an integer" if axes == 1 else "an integer or a tuple of such",
            volume="k" if axes == 1 else f"k^{axes}",
        )
        self._letters = [str.maketrans(_LETTERS[1][0], letters) for letters in _LETTERS[axes]]

    def __missing__(self, text: str) -> str:
        """What is said of one axis, said of each."""
        return ", ".join(map(text.translate, self._letters))


def completed(own: str | None, shared: str, axes: int) -> str | None:
    """A docstring, with a text behind its first line that it shares with those for other numbers of axes."""
    if own is None:  # with python -OO there are none
        return None
    first, _, rest = inspect.cleandoc(own).partition("\n\n")
    return "\n\n".join((first, shared.strip("\n").format_map(_Words(axes)), rest))


# --- Layers ------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class Spatial(Layer[Residuals], Generic[Residuals]):
    """A layer over one, two or three spatial axes, of inputs (B, C, *spatial), or (C, *spatial) for one without a batch."""

    axes: ClassVar[int]
    """How many spatial axes there are."""

    @classmethod
    @override
    def __attrs_init_subclass__(cls) -> None:
        """Complete the docstring of a class for a number of axes by that of its family, but for the first line of that."""
        super().__attrs_init_subclass__()
        if "axes" in vars(cls):
            shared = inspect.cleandoc(cls.__mro__[1].__doc__ or "").partition("\n\n")[2]
            cls.__doc__ = completed(cls.__doc__, shared, cls.axes)

    def _each(self, setting: PerAxis) -> tuple[int, ...]:
        """A setting as a number for each axis."""
        return (setting,) * self.axes if isinstance(setting, int) else setting

    def _require_axes(self, x: Tensor, error: Exception | None) -> None:
        """Raise unless an input has the spatial axes, that of the channels, and that of the batch or none."""
        if x.ndim not in {self.axes + 1, self.axes + 2}:
            spatial = letters(self.axes)
            raise ValueError(
                f"{type(self).__name__} takes an input of shape (B, C, {spatial}), or (C, {spatial}) without a batch, not"
                f" {tuple(x.shape)}"
            ) from error


def letters(axes: int) -> str:
    """The spatial axes, by their letters.

    >>> letters(2)
    'H, W'
    """
    return _Words(axes)["L"]


def require_per_axis(layer: type[Spatial[Residuals]], field: str, setting: object, least: int, tuples: str) -> None:
    """Raise unless a setting of a layer is an integer that is large enough, or a tuple of one for each axis.

    Args:
        layer: its class.
        field: the setting's name.
        setting: the setting.
        least: what an integer must be at least.
        tuples: what the layer takes besides an integer, for the error.
    """
    name, axes = layer.__name__, layer.axes
    sizes = setting if isinstance(setting, tuple) else (setting,) * axes
    if len(sizes) != axes or not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"{name}'s {field} is an integer{tuples}, not {setting!r}")
    if any(size < least for size in sizes if isinstance(size, int)):
        raise ValueError(f"{name}'s {field} must be at least {least}, not {setting!r}")
