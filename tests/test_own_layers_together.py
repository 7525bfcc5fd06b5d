"""Layers of a user's own, divided among processes: the numbers are those of the plain model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    BUFFER,
    Initializer,
    Key,
    Layer,
    Step,
    TrainState,
    adam,
    backward,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    constant,
    cross_entropy,
    forward,
    initialize,
    key,
    linear,
    load,
    minibatches,
    normal,
    ones,
    random,
    repeat,
    residual,
    save,
    self_attention,
    train_state,
    train_step,
    tree,
)
from fundl.distributed import Group, pipeline_step, shard, stages, tensor_parallel, unshard, unstage, zero_bubble
from fundl.layer import Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64
ONES: Final = ones()
SMALL: Final = normal(0.01)
TENTH: Final = constant(0.1)
M = TypeVar("M", bound=Model)
R = TypeVar("R")
S = TypeVar("S")
Batch = tuple[Tensor, Tensor]


@attrs.frozen(eq=False)
class Affine(Layer[Tensor]):
    """y = s (g x + b), with a g and a b for each feature, whose number a static field tells as well."""

    gain: Tensor
    bias: Tensor
    features: int
    scale: float = 0.5
    gain_init: Initializer = ONES
    bias_init: Initializer = SMALL

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gain, bias = self.gain.view(self.features), self.bias.view(self.features)
        return self.scale * (gain * x + bias), x

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        rows, x = (part.reshape(-1, self.features) for part in (grad, residuals))
        return self.gradient(self.scale * (rows * x).sum(0), self.scale * rows.sum(0))

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        return self.scale * self.gain.view(self.features) * grad


def affine(features: int) -> Affine:
    shape_only = torch.empty(features, device="meta")
    return Affine(shape_only, shape_only, features)


@attrs.frozen(eq=False)
class NoisyGain(Layer[tuple[Tensor, Tensor]]):
    """y = (g + std n) x, with n drawn from the key."""

    gain: Tensor
    std: float
    key: Key | None = attrs.field(default=None, metadata=BUFFER)
    gain_init: Initializer = ONES

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        drawn = torch.zeros_like(x) if self.key is None else random.normal(self.key, tuple(x.shape), dtype=x.dtype)
        factor = self.gain + self.std * drawn
        return factor * x, (x, factor)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        x, factor = residuals
        return self.gradient((grad * x).reshape(-1, self.gain.shape[0]).sum(0)), factor * grad


@attrs.frozen(eq=False)
class Noise(Layer[None]):
    """y = x + n, with n drawn from the key."""

    elementwise = True

    key: Key | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x if self.key is None else x + random.normal(self.key, tuple(x.shape), dtype=x.dtype)), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


@attrs.frozen(eq=False)
class Standardize(Layer[None]):
    """y = (x - mean) / std, of buffers."""

    mean: Tensor = attrs.field(metadata=BUFFER)
    std: Tensor = attrs.field(metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x - self.mean) / self.std, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad / self.std


@attrs.frozen(eq=False)
class Shifted(Layer[None]):
    """y = x + b, of a buffer: what it says of itself is not true, as features differ."""

    elementwise = True

    shift: Tensor = attrs.field(metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.shift, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


def standardize(features: int) -> Standardize:
    return Standardize(torch.linspace(-1, 1, features, dtype=DOUBLE), torch.linspace(1, 2, features, dtype=DOUBLE))


@attrs.frozen(eq=False)
class Softsign(Layer[Tensor]):
    """y = x / (1 + |x|), with a buffer that is one number and a static one."""

    elementwise = True

    shift: Tensor = attrs.field(factory=lambda: torch.tensor(0.25, dtype=DOUBLE), metadata=BUFFER)
    power: int = 2

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = 1 + x.abs()
        return x / wide + self.shift, wide

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad / residuals**self.power


@attrs.frozen(eq=False)
class Gained(Layer[tuple[Tensor, object]], Generic[M]):
    """y = x + g f(x)."""

    gain: Tensor
    inner: M
    gain_init: Initializer = TENTH

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, object]]:
        y, kept = forward(self.inner, x)
        return x + self.gain * y, (y, kept)

    @override
    def backward(self, residuals: tuple[Tensor, object], grad: Tensor) -> tuple[Self, Tensor]:
        y, kept = residuals
        grads, grad_x = backward(self.inner, kept, self.gain * grad)
        return self.gradient((grad * y).reshape(-1, self.gain.shape[0]).sum(0), grads), grad + grad_x


def gained(features: int, inner: M) -> Gained[M]:
    return Gained(torch.empty(features, device="meta"), inner)


def noisy_gain(features: int) -> NoisyGain:
    return NoisyGain(torch.empty(features, device="meta"), 0.3)


# --- Models -------------------------------------------------------------------------------------------------------------


def sharded(group: Group | None) -> Model:
    def around(*layers: Model) -> Model:
        return shard(group, *layers) if group is not None else layers[0] if len(layers) == 1 else layers

    block = around(gained(7, compose(linear(7, 7), Softsign(), noisy_gain(7), affine(7))), standardize(7))
    return compose(
        around(linear(3, 7), affine(7), noisy_gain(7), standardize(7), Softsign(), Noise()),
        around(gained(7, (linear(7, 7), Softsign()))),
        gained(7, compose(around(linear(7, 7)), Noise())),
        repeat(2, checkpoint(block)),
        residual(affine(7), around(affine(7))),
        linear(7, 4),
    )


def split(group: Group | None) -> Model:
    def around(*layers: Model) -> Model:
        return tensor_parallel(group, *layers) if group is not None else layers[0] if len(layers) == 1 else layers

    network = compose(linear(6, 8), Softsign(), Noise(), linear(8, 6))
    other = compose(linear(6, 8), Shifted(torch.linspace(-1, 1, 8, dtype=DOUBLE)), linear(8, 6))  # which stays whole
    inner = gained(6, compose(affine(6), self_attention(6, 2))), gained(6, network), residual(*other)
    block = compose(*inner, noisy_gain(6), standardize(6))
    return compose(linear(3, 6), around(block), repeat(2, checkpoint(around(block))), Noise(), affine(6), linear(6, 4))


def staged(group: Group | None) -> Model:
    inner = compose(linear(7, 7), Softsign(), noisy_gain(7), affine(7))
    layers = compose(
        linear(3, 7),
        affine(7),
        noisy_gain(7),
        standardize(7),
        (gained(7, inner), Noise()),
        repeat(2, gained(7, compose(noisy_gain(7), linear(7, 7)))),
        noisy_gain(7),
        Softsign(),
        linear(7, 4),
    )
    return layers if group is None else stages(group, layers)


MODELS: Final[dict[str, Callable[[Group | None], Model]]] = {"shard": sharded, "tensor_parallel": split, "stages": staged}


LOSS: Final = partial(cross_entropy, axis=-1)
OPTIMIZER: Final = chain(clip_by_global_norm(0.5), adam(1e-2, epsilon=1e-3))


def taken(
    step: Step[Model, S, Tensor, Tensor, R], state: TrainState[Model, S], data: Batch, over: Group
) -> tuple[TrainState[Model, S], list[float]]:
    """The state after some steps, and their losses."""
    losses: list[float] = []
    for epoch in range(2):
        for batch in minibatches(key(epoch), data, 6, part=over):
            state, report = step(state, batch)
            losses.append(report.loss.item())
    return state, losses


def trained(group: Group, how: str, folder: str | None) -> tuple[Model, list[float], int]:
    """The model after some steps, put together; its losses; and how many parameters are told. It is saved, and loaded again."""
    x = random.normal(key(1), (12, 5, 3) if how == "tensor_parallel" else (12, 3), dtype=DOUBLE)
    data = x, random.randint(key(2), x.shape[:-1], low=0, high=4)
    model = initialize(key(0), MODELS[how](None if folder is None else group), dtype=DOUBLE)
    state = train_state(key(3), model, OPTIMIZER)
    if how == "stages":
        through = pipeline_step(LOSS, OPTIMIZER, through=group, micro_batches=3, schedule=zero_bubble)
        state, losses = taken(through, state, data, ALONE)
    else:
        over = group if how == "shard" else ALONE
        state, losses = taken(train_step(LOSS, OPTIMIZER, over=over), state, data, over)
    if folder is not None:
        save(f"{folder}/{how}", state)
        if not tree.equal(load(f"{folder}/{how}", state), state):
            raise AssertionError("it is not what was saved")
    return unshard(unstage(state.model)), losses, tree.count(model)


@pytest.mark.parametrize("how", MODELS)
def test_layers_of_one_s_own_are_divided(how: str, tmp_path: Path) -> None:
    model, losses, count = trained(ALONE, how, None)
    for its_model, its_losses, its_count in together(2, trained, how, str(tmp_path)):
        assert tree.paths(its_model) == tree.paths(model)
        pairs = zip(tree.leaves(its_model), tree.leaves(model), strict=True)
        assert max(float((one - other).abs().max()) for one, other in pairs) < 1e-12
        assert its_losses == pytest.approx(losses, rel=1e-12)
        assert its_count == count
