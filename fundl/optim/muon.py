"""Muon: momentum whose matrices are made orthogonal, so that a step changes all directions alike."""

import math
from typing import Final, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import count_of_steps, fraction, positive
from fundl._common.suggestions import with_suggestions
from fundl.optim._blocks import Stacked, block_norms, is_divided, stacked_axes
from fundl.optim._moments import mean_of
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, mixed, require_fit, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record, Splits, describe

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that is applied to the singular values: steepest at 0, and near 1 in the end."""


@final
@attrs.frozen(eq=False)
class MuonState(Record, metaclass=Listed):
    """The state of `scale_by_muon`.

    Args:
        momentum: the decayed mean of the gradients.
        stacked: for each leaf, along how many axes it is stacked of matrices. It is static.
    """

    momentum: Tensors
    stacked: Stacked


def _floating(_record: object, _field: "attrs.Attribute[torch.dtype | None]", value: torch.dtype | None) -> None:
    given: object = value
    if given is not None and not (isinstance(given, torch.dtype) and given.is_floating_point):
        raise TypeError(f"dtype is a floating-point dtype, such as torch.bfloat16, or None, not {describe(given)}")


@final
@attrs.frozen
class _ScaleByMuon(Transform[MuonState]):
    writes_over = True
    numbers = ("momentum", "epsilon")

    momentum: Number = attrs.field(validator=fraction)
    nesterov: bool
    iterations: int = attrs.field(validator=count_of_steps)
    match_adam: bool
    epsilon: Number = attrs.field(validator=positive)
    dtype: torch.dtype | None = attrs.field(validator=_floating)
    splits: Splits = attrs.field(default=(), repr=False)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, splits=splits)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> MuonState:
        stacked = tuple(map(stacked_axes, paths))
        for path, leaf, axes in zip(paths, leaves, stacked, strict=True):
            if leaf.ndim - axes < 2:
                raise ValueError(
                    f"muon is for matrices, and the leaf at {path or 'the root'} is {describe(leaf)}: write"
                    ' partition({"matrices": muon(0.02), "rest": adamw(0.001)}, where={"matrices": is_matrix})'
                )
        return MuonState(zeros_like(leaves), stacked)

    @override
    def change(self, grads: Tensors, state: MuonState, params: Tensors) -> tuple[Tensors, MuonState]:
        require_fit(state.momentum, grads)
        momentum = mean_of(state.momentum, grads, self.momentum, over=False)
        return self._direction(grads, momentum, state.stacked), MuonState(momentum, state.stacked)

    @override
    def change_over(self, grads: Tensors, state: MuonState, params: Tensors) -> tuple[Tensors, MuonState]:
        require_fit(state.momentum, grads)
        momentum = mean_of(state.momentum, grads, self.momentum, over=True)
        return self._direction(grads, momentum, state.stacked), state

    def _direction(self, grads: Tensors, momentum: Tensors, stacked: Stacked) -> Tensors:
        ahead = mixed(grads, momentum, self.momentum) if self.nesterov else momentum
        splits = self.splits or (None,) * len(ahead)
        results: list[Tensor] = []
        for tensor, axes, split in zip(ahead, stacked, splits, strict=True):
            if split is not None and is_divided(split, tensor, axes):
                whole = self._orthogonal(split.whole_of(tensor), axes)
                results.append(split.part_of(whole, split.among.rank))
            else:
                results.append(self._orthogonal(tensor, axes))
        return tuple(results)

    def _orthogonal(self, tensor: Tensor, stacked: int) -> Tensor:
        """Each matrix with all its singular values near 1, times what its shape asks for."""
        if not tensor.numel():
            return tensor.clone()
        matrix = tensor.flatten(stacked + 1)  # of a convolution: (..., n, m), m the inputs of one output
        rows, columns = matrix.shape[-2:]
        (norm,) = block_norms((matrix,), (stacked,))
        x = matrix / norm.clamp(min=self.epsilon).to(matrix.dtype)
        if self.dtype is not None:
            x = x.to(self.dtype)
        x = x.transpose(-1, -2) if rows > columns else x  # of the shorter side the products are small
        a, b, c = _COEFFICIENTS
        for _ in range(self.iterations):
            gram = x @ x.transpose(-1, -2)
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        x = x.transpose(-1, -2) if rows > columns else x
        size = 0.2 * math.sqrt(max(rows, columns)) if self.match_adam else math.sqrt(max(1.0, rows / columns))
        return (x.to(tensor.dtype) * size).reshape(tensor.shape)


@with_suggestions
def scale_by_muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    match_adam: bool = False,
    epsilon: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Transform[MuonState]:
    """Replace matrices by orthogonal ones: those of a momentum, with all singular values near 1.

        b = momentum b + (1 - momentum) g,    d = b, or with `nesterov` d = momentum b + (1 - momentum) g
        u = s X,    X = d / max(|d|, epsilon), and then, some times,    X = 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X

    for matrices (n, m), with s = sqrt(max(1, n / m)). The iterations drive each singular value of X to between 0.7 and 1.2, but
    for those that are tiny. The weight of a convolution, (n, channels, height, width), is a matrix of n rows; where `repeat`
    stacks matrices, each is one. If a number of g is not finite, u is not a number.

    Where processes have parts of a matrix, as of `distributed.shard` or `distributed.shard_moments`, they gather the momentum
    of all of it in each step.

    Args:
        momentum: the decay of b, in [0, 1).
        nesterov: whether to look ahead.
        iterations: how often the polynomial is applied, 1 or more.
        match_adam: whether to take s = 0.2 sqrt(max(n, m)), with which steps are about as large as Adam's, so that a rate for
            `adamw` is one for this.
        epsilon: keeps the denominator from 0; above 0.
        dtype: in which X is computed; None for that of the params. torch.bfloat16 is exact enough, and much faster on a GPU.

    Raises:
        ValueError: in `init`, a leaf has fewer than two axes: give it to another optimizer, by `partition`.

    Source:
        Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, Muon: an optimizer for hidden layers in neural networks, 2024;
        Liu et al., Muon is scalable for LLM training, 2025 (match_adam).

    >>> from fundl import scale_by_muon
    >>> transform, params = scale_by_muon(), torch.zeros(2, 2)
    >>> transform.update(torch.tensor([[30.0, 0.0], [0.0, -10.0]]), transform.init(params), params)[0]
    tensor([[ 0.7530,  0.0000],
            [ 0.0000, -1.1337]])
    """
    return _ScaleByMuon(momentum, nesterov, iterations, match_adam, epsilon, dtype)


MuonChainState: TypeAlias = tuple[MuonState, DecayState, RateState]
"""What `muon` remembers, part by part of its chain."""


@with_suggestions
def muon(
    rate: Rate,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    match_adam: bool = False,
    epsilon: float = 1e-7,
    dtype: torch.dtype | None = None,
    weight_decay: float = 0.1,
    where: Predicate | None = None,
) -> Transform[MuonChainState]:
    """Muon: p = p - rate (u + weight_decay p), with u from `scale_by_muon`.

    It is ``chain(scale_by_muon(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``. It is for
    the matrices of hidden layers. Biases and norms, and usually embeddings and the last layer, are for another optimizer:

        optimizer = partition({"matrices": muon(0.02), "rest": adamw(0.001)}, where={"matrices": is_matrix})

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        momentum, nesterov, iterations, match_adam, epsilon, dtype: see `scale_by_muon`, which also has the sources.
        weight_decay, where: see `add_decayed_weights`.

    Raises:
        ValueError: in `init`, a leaf has fewer than two axes.

    >>> from fundl import adamw, is_matrix, muon, partition
    >>> optimizer = partition({"matrices": muon(0.1), "rest": adamw(0.1)}, where={"matrices": is_matrix})
    >>> params = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    >>> grads = {"weight": 100 * torch.eye(2), "bias": torch.ones(2)}
    >>> optimizer.step(grads, optimizer.init(params), params)[0]["bias"]
    tensor([-0.1000, -0.1000])
    """
    return chain(
        scale_by_muon(
            momentum=momentum, nesterov=nesterov, iterations=iterations, match_adam=match_adam, epsilon=epsilon, dtype=dtype
        ),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
