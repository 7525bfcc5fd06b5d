"""What layers say about sizes: the shapes that they take, and the shapes that they give for them.

A layer's rule is its method `output_shape`, the forward of shapes. Its types say the same as its body:

    def output_shape(self, shape: Shape[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]:
        *lead, features = shape.trailing(1)
        expect("features", features, self.weight.shape[1])
        return Shape(*lead, self.weight.shape[0])

The bodies serve at run time: whoever composes or initialises a model runs the rules of its layers, one after the other. The
types serve before anything runs: fundl_mypy, the plugin for mypy, reads them, and computes with the classes of this package.
It loads the package by itself, without torch and the rest of fundl: hence the relative imports.

A size that is not stated is unknown, and fits. A rule that expects a number there finds it out. So layers that see the same
input must agree on it.
"""

# fmt: off
import types
import typing

from ._sizes import (
    AnyShape as AnyShape, AnySize as AnySize, Misfit as Misfit, Place as Place, Shape as Shape, Size as Size,
    Unknown as Unknown, expect as expect,
)
from ._computed import (
    Difference as Difference, Divided as Divided, Length as Length, Product as Product, Quotient as Quotient,
    Spread as Spread, Sum as Sum, Window as Window,
)
from ._changed import (
    Batch as Batch, Channels as Channels, Depth as Depth, Ending as Ending, Features as Features, Height as Height,
    InFeatures as InFeatures, Last as Last, Lead as Lead, OutFeatures as OutFeatures, Padded as Padded, Patched as Patched,
    Reshaped as Reshaped, Resized as Resized, Rest as Rest, S as S, Setting as Setting, Spreads as Spreads, Steps as Steps,
    Unfolded as Unfolded, Value as Value, Width as Width, Windows as Windows,
)
from ._layers import (
    Folded as Folded, Joined as Joined, Kept as Kept, Stated as Stated, Through as Through, name_of as name_of,
    of_model as of_model, through as through,
)

if not typing.TYPE_CHECKING:  # a checker takes what is imported as itself
    __all__ = sorted(
        name for name, value in globals().items() if not name.startswith("_") and not isinstance(value, types.ModuleType)
    )

    def __dir__():
        return __all__
