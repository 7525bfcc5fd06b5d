"""Sharded parameters: the numbers of a model that one process has as a whole, of which each process has its rows."""

from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Dropout,
    Layer,
    ReLU,
    accumulate,
    adam,
    adamw,
    apply,
    batch_norm,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    ema,
    embedding,
    initialize,
    key,
    layer_norm,
    linear,
    minibatches,
    mixed_precision,
    momentum,
    output_shape,
    partition,
    repeat,
    residual,
    sgd,
    skip_nonfinite,
    skipped_steps,
    summary,
    tied,
    train_state,
    train_step,
    transformer_block,
    tree,
    value_and_grad,
)
from fundl.distributed import Group, Sharded, shard, unshard
from fundl.layer import Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64


@attrs.frozen(eq=False)
class Scaled(Layer[Tensor]):
    """A user's layer whose parameter has no rows: y = factor x."""

    factor: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * x, x

    @override
    def backward(self, x: Tensor, grad: Tensor) -> tuple["Scaled", Tensor]:
        return Scaled((grad * x).sum()), grad * self.factor


def layers(group: Group) -> Model:
    """Layers of all kinds, with rows that no number of processes divides; some of them are sharded."""
    return compose(
        shard(group, linear(3, 7), Scaled(torch.full((), 0.25)), batch_norm(7)),
        repeat(3, residual(shard(group, linear(7, 7), Dropout(0.3), ReLU()))),
        checkpoint(shard(group, linear(7, 5), layer_norm(5))),
        linear(5, 5),
        shard(group, checkpoint(linear(5, 1), linear(1, 4))),
    )


def language(group: Group) -> Model:
    return compose(
        shard(group, embedding(11, 8)), repeat(2, checkpoint(shard(group, *transformer_block(8, 2, causal=True)))), linear(8, 11)
    )


def of_one(group: Group) -> Model:
    return compose(shard(group, tied(embedding(11, 8), *transformer_block(8, 2, causal=True))))


MODELS: Final = {"layers": layers, "language": language, "tied": of_one}
BOUNDED: Final[dict[str, AnyTransform]] = {
    "sgd": sgd(0.1),
    "clipped": chain(clip_by_global_norm(0.05), momentum(0.1)),
    "adam": chain(clip_by_global_norm(1e-4), adam(1e-2, epsilon=1e-3)),
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(0.05), momentum(0.1))),
    "skipping": skip_nonfinite(accumulate(chain(clip_by_global_norm(0.05), momentum(0.1)), 2)),
    "parts": partition(
        {"first": chain(clip_by_global_norm(0.01), sgd(0.1)), "rest": chain(clip_by_global_norm(0.02), sgd(0.2))},
        where={"first": "[0]"},
    ),
}


def data(model: str) -> tuple[Tensor, Tensor]:
    if model == "layers":
        x = torch.linspace(-1.0, 1.0, 39, dtype=DOUBLE).reshape(13, 3).sin()
        return x, torch.arange(13) % 4
    x = torch.arange(13 * 4).reshape(13, 4) % 11
    return x, (3 * x + 1) % 11


def trained(group: Group, name: str, optimizer: AnyTransform, *, donate: bool = False) -> Model:
    """The model after some steps, whole."""
    model = initialize(key(0), MODELS[name](group), dtype=DOUBLE)
    state = train_state(key(1), model, optimizer)
    step = train_step(cross_entropy, optimizer, over=group, donate=donate)
    for epoch in range(2):
        for batch in minibatches(key(epoch), data(name), 7, part=group):
            state, _ = step(state, batch)
    return unshard(state.model)


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


@pytest.mark.parametrize("optimizer", BOUNDED)
def test_a_run_of_sharded_parameters_gives_the_numbers_of_one_process(optimizer: str) -> None:
    alone = trained(ALONE, "layers", BOUNDED[optimizer])
    for model in together(2, trained, "layers", BOUNDED[optimizer]):
        assert difference(model, alone) < 1e-12


@pytest.mark.parametrize("name", ["language", "tied"])
def test_models_of_language_give_the_numbers_of_one_process(name: str) -> None:
    alone = trained(ALONE, name, BOUNDED["clipped"])
    for model in together(2, trained, name, BOUNDED["clipped"]):
        assert difference(model, alone) < 1e-12
