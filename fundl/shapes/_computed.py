"""Sizes that are computed of others, in the types of a rule and in its body.

Each class stands in the types of a rule with its operands: ``Product[Height, Width]``. Its function `of` is the same for the
sizes themselves, in the rule's body. What is computed from the unknown is unknown.
"""

import math
from typing import Generic, Literal

from typing_extensions import TypeVar

from ._sizes import Axes, Misfit, Size, Unknown, numbers_of

First = TypeVar("First")
Second = TypeVar("Second")


class Sum(Generic[*Axes]):
    """The sum of sizes."""

    @staticmethod
    def of(*sizes: Size) -> Size:
        """The sum of the sizes.

        >>> Sum.of(3, 4, 1)
        8
        """
        numbers = numbers_of(sizes)
        return Unknown() if numbers is None else sum(numbers)


class Product(Generic[*Axes]):
    """The product of sizes."""

    @staticmethod
    def of(*sizes: Size) -> Size:
        """The product of the sizes.

        >>> Product.of(8, 26, 26)
        5408
        """
        numbers = numbers_of(sizes)
        return Unknown() if numbers is None else math.prod(numbers)


class Difference(Generic[First, Second]):
    """What is left of a size when another is taken away."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size minus the second.

        >>> Difference.of(28, 2)
        26
        """
        numbers = numbers_of((first, second))
        return Unknown() if numbers is None else numbers[0] - numbers[1]


class Quotient(Generic[First, Second]):
    """How many times a size has room for another."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size divided by the second, rounded down.

        >>> Quotient.of(29, 2)
        14
        """
        numbers = numbers_of((first, second))
        return Unknown() if numbers is None or numbers[1] == 0 else numbers[0] // numbers[1]


class Divided(Generic[First, Second]):
    """A size divided into equal parts."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size divided by the second, which must divide it.

        Raises:
            Misfit: it does not.

        >>> Divided.of(28, 2)
        14
        """
        numbers = numbers_of((first, second))
        if numbers is None or numbers[1] == 0:
            return Unknown()
        if numbers[0] % numbers[1]:
            raise Misfit(f"a size that is a multiple of {numbers[1]}", f"one of {numbers[0]}")
        return numbers[0] // numbers[1]


Length = TypeVar("Length")
Kernel = TypeVar("Kernel")
Stride = TypeVar("Stride", default=Literal[1])
Padding = TypeVar("Padding", default=Literal[0])
Dilation = TypeVar("Dilation", default=Literal[1])
CeilMode = TypeVar("CeilMode", default=Literal[False])


class Window(Generic[Length, Kernel, Stride, Padding, Dilation, CeilMode]):
    """How many places a sliding window takes: what convolution and pooling make of a height or a width."""

    @staticmethod
    def of(  # noqa: PLR0917  # its operands stand in types as well, which have no names there
        length: Size,
        kernel: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: Size = False,
        *,
        sides: str = "height and width",
    ) -> Size:
        """floor((length + 2 padding - dilation (kernel - 1) - 1) / stride) + 1.

        Args:
            length: of the axis.
            kernel: how many elements the window sees.
            stride: from one place of the window to the next.
            padding: elements that are put before the axis, and as many behind it.
            dilation: from one element that the window sees to the next.
            ceil_mode: whether the last place may reach beyond the padding, as long as it starts before it: ceil, not floor.
            sides: what a message calls the axes that a window slides over.

        Raises:
            Misfit: there is no place for the window.

        >>> Window.of(28, 3), Window.of(28, 2, 2), Window.of(28, 3, 2, 1), Window.of(29, 2, 2, ceil_mode=True)
        (26, 14, 14, 15)
        """
        numbers = numbers_of((length, kernel, stride, padding, dilation, ceil_mode))
        if numbers is None or numbers[2] < 1:
            return Unknown()
        known, seen, step, pad, spread, beyond = numbers
        span = spread * (seen - 1) + 1
        least = span - 2 * pad - (step - 1) * bool(beyond)
        if known < least:
            raise Misfit(f"a {sides} of at least {least}", f"one of {known}")
        if not beyond:
            return (known + 2 * pad - span) // step + 1
        places = -((span - known - 2 * pad) // step) + 1
        return places - ((places - 1) * step >= known + pad)


OutputPadding = TypeVar("OutputPadding", default=Literal[0])


class Spread(Generic[Length, Kernel, Stride, Padding, Dilation, OutputPadding]):
    """How far windows reach that are put side by side, one for each element: what a transposed convolution makes of a side.

    It is the length which has so many places for a `Window`; of several such, the shortest, and longer by the output padding.
    """

    @staticmethod
    def of(  # noqa: PLR0917  # its operands stand in types as well, which have no names there
        length: Size,
        kernel: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        output_padding: Size = 0,
        *,
        sides: str = "height and width",
    ) -> Size:
        """(length - 1) stride - 2 padding + dilation (kernel - 1) + 1 + output_padding.

        Args:
            length: of the axis: how many windows there are.
            kernel: how many elements each has; stride, dilation and sides are as for `Window.of`, too.
            padding: elements that are cut off in front, and as many behind.
            output_padding: elements that are put behind.

        Raises:
            Misfit: nothing is left.

        >>> Spread.of(26, 3), Spread.of(14, 2, 2), Spread.of(14, 3, 2, 1), Spread.of(14, 3, 2, 1, output_padding=1)
        (28, 28, 27, 28)
        """
        numbers = numbers_of((length, kernel, stride, padding, dilation, output_padding))
        if numbers is None or numbers[2] < 1:
            return Unknown()
        known, seen, step, pad, spread, more = numbers
        span = spread * (seen - 1) + 1 + more - 2 * pad
        least = 1 + max(0, -((span - 1) // step))
        if known < least:
            raise Misfit(f"a {sides} of at least {least}", f"one of {known}")
        return (known - 1) * step + span
