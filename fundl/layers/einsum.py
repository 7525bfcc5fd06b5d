"""Linear maps over any axes, given by an equation."""

import math
import re
from collections.abc import Mapping
from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layer import Layer
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import AnyShape, Shape, Size, expect

_REST = "..."


@attrs.frozen
class _Equation:
    """The letters of the input's axes, the weight's and the output's; "..." may stand before those of input and output."""

    x: str
    weight: str
    y: str

    @property
    def bias(self) -> str:
        """Those of the bias: the axes that the weight brings into the output."""
        return "".join(letter for letter in self.y if letter in self.weight and letter not in self.x)


def _parsed(equation: str) -> _Equation:
    """An equation, taken apart; an error says what is wrong with it."""
    example = 'write it as "...d,dhk->...hk", with a letter for each axis of the input, of the weight, and of the output'
    found = re.fullmatch(r"((?:\.\.\.)?[A-Za-z]*),([A-Za-z]+)->((?:\.\.\.)?[A-Za-z]*)", equation.replace(" ", ""))
    if found is None:
        raise ValueError(f"the equation {equation!r} is not of an input and a weight: {example}")
    x, weight, y = (str(part) for part in found.groups())
    if x.startswith(_REST) != y.startswith(_REST):
        raise ValueError(f"in the equation {equation!r}, ... must stand in the input and in the output, or in neither")
    letters = [part.removeprefix(_REST) for part in (x, weight, y)]
    for part in letters:
        if twice := sorted({letter for letter in part if part.count(letter) > 1}):
            raise ValueError(f"in the equation {equation!r}, {part!r} has {twice[0]!r} twice: a letter is one axis of each")
    for place, part in enumerate(letters):
        others = "".join(letters[:place] + letters[place + 1 :])
        if alone := [letter for letter in part if letter not in others]:
            raise ValueError(
                f"in the equation {equation!r}, {alone[0]!r} is in one place alone: each axis of the input, of the weight and"
                " of the output is one of another of the three as well"
            )
    return _Equation(x, weight, y)


@final
@attrs.frozen(eq=False)
class Einsum(Layer[Tensor], OwnFans):
    """A linear map over any axes, given by an equation: "...d,dhk->...hk" is y[..., h, k] = sum over d of x[..., d] W[d, h, k].

    What is in the input and the weight, but not in the output, is summed over, as by `torch.einsum`. A bias has the axes that
    the weight brings into the output, h and k here, and is added along these.

    Its vjp, with x, w and y for the letters of the three:

        grad_weight = einsum("y,x->w", grad, x),    grad_x = einsum("y,w->x", grad, W)
        grad_bias = sum of grad over all other axes

    Args:
        weight: W, with one axis for each of its letters.
        bias: b, with the axes that the weight brings into the output, or None.
        equation: "x,w->y", a letter for each axis. ``...`` may stand for any number of axes before those of x and y.
        weight_init: how `initialize` draws the weight; from U(-b, b) with b = 1/sqrt(n) by default, with n numbers summed for
            one of the output.
        bias_init: how `initialize` draws the bias; likewise.

    Shape:
        as the equation has it

    Residuals:
        The input, shared, not copied.

    Raises:
        ValueError: the equation is none, or the input is not of its sizes.
        TypeError: the input's dtype is not the weight's.

    >>> from fundl import Einsum, apply
    >>> layer = Einsum(torch.ones(3, 2, 4), None, equation="...d,dhk->...hk")
    >>> apply(layer, torch.ones(5, 3)).shape
    torch.Size([5, 2, 4])
    """

    weight: Tensor
    bias: Tensor | None
    equation: str = attrs.field(kw_only=True)
    weight_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    bias_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _parsed(self.equation)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        letters = self._fitting(x)
        y = torch.einsum(f"{letters.x},{letters.weight}->{letters.y}", x, self.weight)
        if self.bias is not None:
            last = letters.y.removeprefix(_REST)
            sizes = iter(self.bias.shape)
            y = y + self.bias.reshape([next(sizes) if letter in letters.bias else 1 for letter in last])
        return y, x

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        letters = _parsed(self.equation)
        grad_weight = torch.einsum(f"{letters.y},{letters.x}->{letters.weight}", grad, residuals)
        if self.bias is None:
            return self.gradient(grad_weight, None)
        last = letters.y.removeprefix(_REST)
        before = grad.ndim - len(last)
        over = [*range(before), *(before + place for place, letter in enumerate(last) if letter not in letters.bias)]
        return self.gradient(grad_weight, grad.sum(over) if over else grad)

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        letters = _parsed(self.equation)
        return torch.einsum(f"{letters.y},{letters.weight}->{letters.x}", grad, self.weight)

    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        letters = _parsed(self.equation)
        own = dict(zip(letters.weight, self.weight.shape[-len(letters.weight) :], strict=True))
        names = letters.x.removeprefix(_REST)
        given = shape.trailing(len(names)) if letters.x.startswith(_REST) else shape.exactly(len(names))
        before = given[: len(given) - len(names)]
        sizes: dict[str, Size] = {**own}
        for place, (letter, size) in enumerate(zip(names, given[len(before) :], strict=True), start=-len(names)):
            if letter in own:
                expect(f"axis {place}", size, own[letter])
            sizes[letter] = own.get(letter, size)
        return Shape(*before, *(sizes[letter] for letter in letters.y.removeprefix(_REST)))

    @override
    def own_fans(self) -> Fans:
        """What is summed for a number of the output, and for one of the input's gradient."""
        letters = _parsed(self.equation)
        sizes = dict(zip(letters.weight, self.weight.shape, strict=True))
        return Fans(
            math.prod(size for letter, size in sizes.items() if letter not in letters.y),
            math.prod(size for letter, size in sizes.items() if letter not in letters.x),
        )

    def _fitting(self, x: Tensor) -> _Equation:
        """The letters, once the input is found to have their sizes."""
        letters = _parsed(self.equation)
        names = letters.x.removeprefix(_REST)
        sizes = dict(zip(letters.weight, self.weight.shape, strict=True))
        is_open = letters.x.startswith(_REST)
        fits = x.ndim >= len(names) if is_open else x.ndim == len(names)
        if not fits or any(
            sizes.get(letter, size) != size for letter, size in zip(names, x.shape[x.ndim - len(names) :], strict=True)
        ):
            wanted = ", ".join([*[_REST] * is_open, *(str(sizes.get(letter, letter)) for letter in names)])
            raise ValueError(f"Einsum({self.equation!r}) takes an input of shape ({wanted}), not {tuple(x.shape)}")
        require_dtype("Einsum's weight is", self.weight, x)
        return letters


@with_suggestions
def einsum(
    equation: str,
    sizes: Mapping[str, int],
    *,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Einsum:
    """An `Einsum` of the given sizes, without values: give it some with `initialize`.

    Args:
        equation: "x,w->y", a letter for each axis of the input, the weight and the output.
        sizes: of the weight's axes, by their letters.
        bias: whether to add a bias along the axes that the weight brings into the output; there is none if it brings none.
        dtype: the parameters' dtype.

    All other options are fields of `Einsum`.

    Raises:
        ValueError: the equation is none, a size is less than 1, or the sizes are not those of the weight's letters.

    Projections for 2 heads of 4 features each, and a map that has a matrix of its own for each head:

    >>> from fundl import einsum
    >>> einsum("...d,dhk->...hk", {"d": 8, "h": 2, "k": 4})
    Einsum(weight=float32[8, 2, 4], bias=float32[2, 4], equation='...d,dhk->...hk')
    >>> einsum("bthk,hkm->bthm", {"h": 2, "k": 4, "m": 3}, bias=False)
    Einsum(weight=float32[2, 4, 3], bias=None, equation='bthk,hkm->bthm')
    """
    letters = _parsed(equation)
    if {*sizes} != {*letters.weight}:
        raise ValueError(
            f"sizes must have those of the weight's axes, {', '.join(map(repr, letters.weight))}, and of no others, not"
            f" {dict(sizes)}"
        )
    require_at_least_one(**{f"the size of {letter!r}": sizes[letter] for letter in letters.weight})
    return Einsum(
        torch.empty([sizes[letter] for letter in letters.weight], dtype=dtype, device="meta"),
        torch.empty([sizes[letter] for letter in letters.bias], dtype=dtype, device="meta") if bias and letters.bias else None,
        equation=equation,
        weight_init=weight_init,
        bias_init=bias_init,
    )
