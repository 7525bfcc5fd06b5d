"""Spectral normalisation: a layer whose weight, as a matrix, stretches no vector."""

from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import random, tree
from fundl._common.checks import as_model
from fundl._common.half import narrowed, widened
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Dependent, Initializer, normal
from fundl.layer import AnyLayer, P
from fundl.layers._inside import Around, forward_inside
from fundl.layers._layout import require_sizes
from fundl.layers._refusals import require_at_least_one
from fundl.layers._weighted import require_one_layer, weight_of, with_weight
from fundl.shapes import S, Through
from fundl.tree import STATISTIC, Record, describe

L = TypeVar("L", bound=AnyLayer)

_AT_FIRST = 15
"""Power iterations for a new weight."""


@final
@attrs.frozen(eq=False)
class SpectralNorm(Around[tuple[Tensor, Tensor]], Dependent, Generic[L]):
    """A layer whose weight is divided by its largest singular value: w = W / sigma, with W the weight of the layer.

        sigma = u^T W v,    ||u|| = ||v|| = 1

    W is seen as a matrix, whose rows are the weights of each output. The vectors u and v are buffers. They are close to the
    singular vectors, as `initialize` finds them, and each step of training brings them closer to those of the next weight:
    `train_step` does so, and in a loop of one's own `refine`, which is the power iteration

        u <- W v / ||W v||,    v <- W^T u / ||W^T u||

    A layer between which and its input nothing is stretched has Lipschitz constant 1; a discriminator made of such, too.

    Its vjp, with the vectors constant: that of the layer with the weight w; with grad_w, its gradient:

        grad_W = (grad_w - (sum of grad_w w) u v^T) / sigma

    Weights of zeros have no direction, and w is NaN. In half precision, sigma is found in float32.

    Args:
        layer: any layer with a field ``weight``; best given to `spectral_norm`, which makes the vectors.
        left: u, of as many numbers as there are outputs.
        right: v, of as many numbers as each output has weights.
        axis: of W, that of the outputs; 0 by default.
        iterations: how often `refine` repeats the power iteration; 1 by default.
        eps: the least norm that a vector is divided by; 1e-12 by default.
        left_init: how `initialize` draws u, before 15 power iterations; normal by default. right_init likewise.

    Shape:
        that of the layer

    Residuals:
        Those of the layer; w, and sigma.

    Raises:
        ValueError: a vector is not of the weight's sizes, or there is no iteration.

    Source:
        Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative adversarial networks, 2018.
    """

    layer: L
    left: Tensor = attrs.field(metadata=STATISTIC)
    right: Tensor = attrs.field(metadata=STATISTIC)
    axis: int = attrs.field(default=0, kw_only=True)
    iterations: int = attrs.field(default=1, kw_only=True)
    eps: float = attrs.field(default=1e-12, kw_only=True)
    left_init: Initializer = attrs.field(default=normal(), kw_only=True)
    right_init: Initializer = attrs.field(default=normal(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_at_least_one(iterations=self.iterations)
        if not self.eps >= 0:
            raise ValueError(f"eps is the least norm that a vector is divided by, 0 or more, not {self.eps}")

    @property
    @override
    def by_position(self) -> bool:
        return self.layer.by_position

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, tuple[Tensor, Tensor]]]:
        given = weight_of(self.layer)
        wide, left, right = self._wide(given)
        sigma = (left * (_matrix(wide, self.axis) @ right)).sum()
        weight = narrowed(wide / sigma, given)
        y, residuals = forward_inside(with_weight(self.layer, weight), x)
        return y, (residuals, (weight, sigma))

    @override
    def _model(self, own: tuple[Tensor, Tensor]) -> L:
        return with_weight(self.layer, own[0])

    @override
    def _gradient(self, own: tuple[Tensor, Tensor], grads: object) -> Self:
        """The gradients, from those of the layer, whose weight was w."""
        weight, sigma = own
        grad_weight, given = weight_of(grads), weight_of(self.layer)
        require_sizes(grad_weight, given.shape)
        wide, left, right = self._wide(grad_weight)
        along = (wide * widened(weight)).sum()
        moved = wide.movedim(self.axis, 0).shape
        outer = torch.outer(left, right).view(moved).movedim(0, self.axis)
        return self.gradient(with_weight(cast("L", grads), narrowed((wide - along * outer) / sigma, grad_weight)))

    def _wide(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A tensor of the weight's shape and the vectors, in float32 at least."""
        wide = widened(weight)
        sizes = weight.shape[self.axis], weight.numel() // max(1, weight.shape[self.axis])
        if (self.left.shape, self.right.shape) != ((sizes[0],), (sizes[1],)):
            raise ValueError(
                f"SpectralNorm has vectors of {sizes[0]} and {sizes[1]} numbers for a weight of shape {tuple(weight.shape)} and"
                f" axis={self.axis}, but here are left={describe(self.left)} and right={describe(self.right)}:"
                " spectral_norm(layer) makes them"
            )
        return wide, self.left.to(wide.dtype), self.right.to(wide.dtype)

    def refined(self, iterations: int) -> "SpectralNorm[L]":
        """The layer after so many power iterations."""
        wide, left, right = self._wide(weight_of(self.layer))
        matrix = _matrix(wide, self.axis)
        for _ in range(iterations):
            left = self._unit(matrix @ right)
            right = self._unit(matrix.t() @ left)
        return attrs.evolve(self, left=left.to(self.left.dtype), right=right.to(self.right.dtype))

    def _unit(self, vector: Tensor) -> Tensor:
        unit: Tensor = vector / torch.linalg.vector_norm(vector).clamp(min=self.eps)
        return unit

    @override
    def output_shape(self, shape: S) -> Through[S, L]:
        return Through(shape, (self.layer,))

    @override
    def with_dependent(self) -> "SpectralNorm[L]":
        return self.refined(_AT_FIRST)


def _matrix(weight: Tensor, axis: int) -> Tensor:
    """The weight with a row for each output."""
    return weight.movedim(axis, 0).flatten(1)


@with_suggestions
def spectral_norm(layer: L, *, axis: int = 0, iterations: int = 1, eps: float = 1e-12) -> SpectralNorm[L]:
    """A layer whose weight is divided by its largest singular value.

    Args:
        layer: any layer with a field ``weight`` of two or more axes, with values or without.
        axis: of the weight, that of the outputs; 0 by default. Of a transposed convolution, it is 1.
        iterations: how many power iterations follow each step; 1 by default.
        eps: the least norm that a vector is divided by; 1e-12 by default.

    Raises:
        TypeError: the layer has no such weight.
        ValueError: the weight has no such axis, or there is no iteration.

    >>> from fundl import Linear, apply, spectral_norm
    >>> layer = spectral_norm(Linear(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), bias=None))
    >>> apply(layer, torch.tensor([1.0, 1.0]))
    tensor([0.4000, 1.0000])
    """
    require_one_layer("spectral_norm", layer)
    weight = weight_of(layer)
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"spectral_norm(axis={axis}) needs a weight that has this axis, but the weight is {describe(weight)}")
    with no_grad():
        rows, columns = _matrix(weight, axis).shape
        if weight.is_meta:
            left, right = weight.new_empty(rows), weight.new_empty(columns)
        else:  # any vectors will do that are not orthogonal to the singular ones: random ones are not
            key = random.key(0).to(weight.device)
            left, right = (random.normal(key, (size,), dtype=weight.dtype) for size in (rows, columns))
        made = SpectralNorm(layer, left, right, axis=axis % weight.ndim, iterations=iterations, eps=eps)
        return made if weight.is_meta else made.with_dependent()


@with_suggestions
def refine(model: P, *, iterations: int | None = None) -> P:
    """The model whose `SpectralNorm` layers know the singular vectors of their weights better.

    `train_step` does this after each update. Whoever writes a step does it, too, and so does who changes weights otherwise, by
    an average of those of many steps, say:

        model = refine(apply_updates(model, updates))

    Args:
        model: with values.
        iterations: how many power iterations; None, the default, for those that each layer names.

    Returns:
        A new model; the model itself if it has no such layer.

    Raises:
        ValueError: there is no iteration.

    >>> from fundl import Linear, SpectralNorm, refine
    >>> layer = SpectralNorm(Linear(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), None), torch.ones(2), torch.ones(2))
    >>> refine(layer, iterations=20).right.round(decimals=4)
    tensor([0., 1.])
    """
    as_model(model)
    if iterations is not None:
        require_at_least_one(iterations=iterations)
    with no_grad():
        return refined(model, iterations)


def refined(model: P, iterations: int | None) -> P:
    """As `refine`, of what is known to be a model."""

    def with_vectors(record: Record) -> Record:
        return record.refined(iterations or record.iterations) if isinstance(record, SpectralNorm) else record

    return tree.map_records(with_vectors, model)


def is_spectral_norm(cls: type[Record]) -> bool:
    """Whether records of a class are SpectralNorms."""
    return issubclass(cls, SpectralNorm)
