"""The shape rule of layers whose output is of the shape of their input."""

from fundl.shapes import S


class SameShape:
    """A layer whose output is of the shape of its input, whatever that is."""

    __slots__ = ()

    def output_shape(self, shape: S) -> S:
        """The shape of the input."""
        return shape
