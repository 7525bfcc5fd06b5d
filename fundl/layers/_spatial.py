"""What layers over one, two or three spatial axes share: one docstring for all, settings for each axis, what they refuse.

A family of layers, such as max pooling, is a class that computes, over any number of axes, with a short class for each number.
The family's docstring is a text for all of them. In braces stands what is said of one axis, to be said of each: over two axes,
{i s + u} reads i s + u, j s + v.
"""

import inspect
from collections.abc import Mapping
from typing import ClassVar, Final, Generic, Literal, TypeAlias

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.kernels import PerAxis
from fundl.layer import Layer
from fundl.shapes import AnySize

Residuals = TypeVar("Residuals")

Same: TypeAlias = Literal["same"]
"""The padding of a window that has a place for each stride of an axis, see `same_padding`."""

# Sizes that a layer's type states, named like the fields that hold them
KernelSize = TypeVar("KernelSize", bound=PerAxis, covariant=True, default=AnySize)
Stride = TypeVar("Stride", bound=PerAxis, covariant=True, default=AnySize)
Dilation = TypeVar("Dilation", bound=PerAxis, covariant=True, default=AnySize)

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


# --- Layers ------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class Spatial(Layer[Residuals], Generic[Residuals]):
    """A layer over one, two or three spatial axes, of inputs (B, C, *spatial), or (C, *spatial) for one without a batch."""

    axes: ClassVar[int]
    """How many spatial axes there are."""
    tuples: ClassVar[Mapping[int, str]]
    """What a setting over so many axes may be besides an integer, as its error says."""

    @classmethod
    @override
    def __attrs_init_subclass__(cls) -> None:
        """Put the docstring of the family, but for its first line, behind that of a class for a number of axes."""
        super().__attrs_init_subclass__()
        if "axes" in vars(cls) and cls.__doc__ is not None:  # with python -OO there are none
            _, _, shared = inspect.cleandoc(cls.__mro__[1].__doc__ or "").partition("\n\n")
            first, _, rest = inspect.cleandoc(cls.__doc__).partition("\n\n")
            cls.__doc__ = "\n\n".join((first, shared.format_map(_Words(cls.axes)), rest))

    def _each(self, setting: PerAxis) -> tuple[int, ...]:
        """A setting as a number for each axis."""
        return (setting,) * self.axes if isinstance(setting, int) else setting

    @classmethod
    def _require_integers(cls, field: str, setting: object, least: int, *, or_same: bool = False) -> None:
        """Raise unless a setting is an integer that is large enough, or a tuple of one for each axis."""
        sizes = setting if isinstance(setting, tuple) else (setting,) * cls.axes
        if len(sizes) != cls.axes or not all(type(size) is int for size in sizes):
            same = ", or 'same'" if or_same else ""
            raise TypeError(f"{cls.__name__}'s {field} is an integer{cls.tuples[cls.axes]}{same}, not {setting!r}")
        if any(size < least for size in sizes if isinstance(size, int)):
            raise ValueError(f"{cls.__name__}'s {field} must be at least {least}, not {setting!r}")

    def _require_axes(self, x: Tensor, error: Exception | None) -> None:
        """Raise unless an input has the spatial axes, that of the channels, and that of the batch or none."""
        if x.ndim not in {self.axes + 1, self.axes + 2}:
            spatial = letters(self.axes)
            raise ValueError(
                f"{type(self).__name__} takes an input of shape (B, C, {spatial}), or (C, {spatial}) without a batch, not"
                f" {tuple(x.shape)}"
            ) from error


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """How many elements "same" puts before and behind an axis, so that a window has a place for each stride of it.

    Its places are as many as side / stride, rounded up; of an odd number of elements, the one more is behind.
    """
    places = -(-side // stride)
    more = max((places - 1) * stride + dilation * (kernel - 1) + 1 - side, 0)
    return more // 2, more - more // 2


def letters(axes: int) -> str:
    """The spatial axes, by their letters: "H, W" for two."""
    return _Words(axes)["L"]
