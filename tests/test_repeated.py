"""Blocks of one kind, whose parameters are stacked."""

from typing import assert_type

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import adamw, is_matrix, tree
from fundl.initialization import initialize
from fundl.initializers import kaiming_uniform
from fundl.layer import Layer
from fundl.layers.activation import ReLU, Tanh
from fundl.layers.batch_norm import BatchNorm, batch_norm
from fundl.layers.batch_statistics import calibrate
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.frozen import frozen
from fundl.layers.linear import Linear, linear
from fundl.layers.low_rank import LowRank, low_rank
from fundl.layers.masked import Masked, on_masked, with_mask
from fundl.layers.repeated import Repeat, repeat
from fundl.layers.structure import Flatten, Residual, checkpoint, residual
from fundl.losses.regression import mse
from fundl.model import apply, backward_input, backward_params, compose, forward, output_shape, vjp
from fundl.model_summary import summary
from fundl.random import key, normal
from fundl.shapes import Shape
from fundl.training.step import train_state, train_step
from fundl.tree import BUFFER, Record

X = normal(key(9), (4, 3))


@attrs.frozen(eq=False)
class Heeding(Layer[None]):
    """The input, where the mask says that it is real."""

    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x if self.mask is None else x * self.mask.unsqueeze(-1), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Heeding", Tensor]:
        return self, grad if self.mask is None else grad * self.mask.unsqueeze(-1)


# --- What it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_the_chain_of_its_blocks(count: int) -> None:
    layer = initialize(key(0), repeat(count, residual(linear(3, 4), Tanh(), linear(4, 3)), linear(3, 3, bias=False)))
    plain = compose(*layer.blocks)
    grad = normal(key(1), (4, 3))
    y, residuals = forward(layer, X)
    assert torch.equal(y, apply(plain, X))
    grads, grad_x = vjp(layer, X, grad)
    plain_grads, plain_grad_x = vjp(plain, X, grad)
    assert torch.equal(grad_x, plain_grad_x)
    assert tree.equal(grads.stacked, tree.stack(plain_grads))
    assert tree.equal(backward_params(layer, residuals, grad), grads)
    assert torch.equal(backward_input(layer, residuals, grad), grad_x)


def test_blocks_that_are_there_are_put_together() -> None:
    blocks = [initialize(key(seed), compose(linear(3, 3), ReLU())) for seed in range(3)]
    layer = Repeat(tree.stack(blocks), len(blocks))
    assert tree.equal(layer.blocks, blocks)
    assert torch.equal(apply(layer, X), apply(compose(*blocks), X))


def test_a_block_without_parameters() -> None:
    layer = repeat(2, Tanh())
    assert torch.equal(apply(layer, X), X.tanh().tanh())
    grads, _ = vjp(layer, X, X)
    assert tree.equal(grads, layer)


# --- What goes through records -----------------------------------------------------------------------------------------


def test_initialize_draws_each_block_by_its_own_shape() -> None:
    layer = initialize(key(0), repeat(4, linear(100, 100, weight_init=kaiming_uniform()), ReLU()))
    weight, bias = layer.stacked[0].weight, layer.stacked[0].bias
    assert weight.shape == (4, 100, 100)
    assert bias is not None
    assert bias.shape == (4, 100)
    assert len({float(block[0, 0]) for block in weight}) == 4
    for block in weight:
        assert float(block.std()) == pytest.approx((2 / 100) ** 0.5, rel=0.05)
    assert tree.equal(initialize(key(0), layer), layer)
    assert not tree.equal(initialize(key(1), layer), layer)


def test_initialize_draws_what_is_repeated_in_what_is_repeated() -> None:
    layer = initialize(key(0), repeat(2, linear(3, 3), repeat(4, linear(3, 3, bias=False))))
    weight = layer.stacked[1].stacked[0].weight
    assert weight.shape == (2, 4, 3, 3)
    assert len(set(weight[..., 0, 0].flatten().tolist())) == 8
    assert torch.equal(apply(layer, X), apply(compose(*[(first, *second.blocks) for first, second in layer.blocks]), X))
    assert tree.equal(initialize(key(0), layer), layer)


def test_initialize_keeps_what_is_frozen() -> None:
    body = initialize(key(0), linear(3, 3))
    layer = initialize(key(1), repeat(2, frozen(body), linear(3, 3)))
    assert tree.equal(layer.blocks[0][0].layers[0], body)
    assert tree.equal(layer.blocks[1][0].layers[0], body)
    assert not tree.equal(layer.blocks[0][1], layer.blocks[1][1])
    grads, _ = vjp(layer, X, X)
    assert grads.stacked[0].layers[0].weight is layer.stacked[0].layers[0].weight


def test_initialize_says_what_cannot_be_drawn() -> None:
    @attrs.frozen(eq=False)
    class Scale(Layer[Tensor]):
        weight: Tensor

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight * x, x

        @override
        def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Scale", Tensor]:
            return Scale((grad * residuals).sum(0)), self.weight * grad

    with pytest.raises(TypeError, match="weight has no values, and Scale does not say how to draw them"):
        initialize(key(0), repeat(2, Scale(torch.empty(3, device="meta"))))


def test_each_block_drops_by_its_own_key() -> None:
    layer = initialize(key(0), repeat(3, linear(3, 3), Dropout(0.5)))
    assert rekey(layer, key(1)).stacked[0].weight is layer.stacked[0].weight  # nothing is copied
    keys = rekey(layer, key(1)).stacked[1].key
    assert keys is not None
    assert keys.shape == (3, 2)
    assert len(set(map(tuple, keys.tolist()))) == 3
    plain = rekey(compose(*layer.blocks), key(1))
    assert torch.equal(apply(rekey(layer, key(1)), X), apply(plain, X))


def test_all_blocks_heed_one_mask() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    x = normal(key(0), (2, 2, 3))
    layer = repeat(3, residual(Heeding()))
    assert torch.equal(apply(on_masked(layer), Masked(x, mask)).values, torch.where(mask.unsqueeze(-1), 8 * x, x))
    heeding = with_mask(layer, mask)
    own = heeding.stacked[0].layers[0].mask
    assert own is not None
    assert own.shape == (3, 2, 2)
    assert own.untyped_storage().nbytes() == mask.nbytes
    assert with_mask(heeding, None).stacked[0].layers[0].mask is None


def test_each_block_has_its_own_statistics() -> None:
    layer = initialize(key(0), repeat(2, linear(3, 3), batch_norm(3)))
    ready = calibrate(layer, [X])
    assert isinstance(ready.stacked[1], BatchNorm)
    plain = calibrate(compose(*layer.blocks), [X])
    assert tree.equal(tree.stack(plain), ready.stacked)
    assert torch.equal(apply(ready, X), apply(plain, X))


def test_records_are_those_of_each_block() -> None:
    layer = repeat(2, linear(3, 3), Tanh())
    assert [type(record).__name__ for record in tree.records(layer)] == ["Repeat", "Linear", "Tanh", "Linear", "Tanh"]
    assert all(record.weight.shape == (3, 3) for record in tree.records(layer) if isinstance(record, Linear))
    assert tree.map_records(lambda record: record, layer) is layer


def test_layers_of_blocks_may_get_other_tensors() -> None:
    layer = initialize(key(0), repeat(3, residual(linear(3, 3), Tanh()), batch_norm(3)))

    def adapter(record: Record) -> Record:
        return low_rank(record, 2) if isinstance(record, Linear) else record

    shapes = tree.map_records(adapter, layer)
    assert shapes.stacked[1].weight is layer.stacked[1].weight  # which is not copied
    with_adapters = initialize(key(1), shapes)
    assert torch.equal(apply(with_adapters, X), apply(layer, X))
    assert tree.equal(tree.stack(with_adapters.blocks), with_adapters.stacked)
    grads, _ = vjp(with_adapters, X, torch.ones(4, 3))
    assert [leaf.shape[0] for leaf in tree.trainable_leaves(grads)] == [3] * 4  # down, up, and the norm's weight and bias

    def plain(record: Record) -> Record:
        return record.merged() if isinstance(record, LowRank) else record

    assert tree.equal(tree.map_records(plain, with_adapters), layer)


def test_blocks_must_stay_alike() -> None:
    rates = iter((0.1, 0.2))

    def other(record: Record) -> Record:
        return Dropout(next(rates)) if isinstance(record, Dropout) else record

    with pytest.raises(TypeError, match="block 0 and block 1 of repeat are not of the same structure"):
        tree.map_records(other, repeat(2, Dropout(0.5)))


# --- Training ----------------------------------------------------------------------------------------------------------


def test_it_trains_as_the_chain_of_its_blocks() -> None:
    layer = initialize(key(0), repeat(2, residual(linear(3, 3), Tanh()), Dropout(0.2)))
    optimizer = adamw(1e-2, weight_decay=0.5)
    target = normal(key(1), (4, 3))
    state, plain = train_state(key(2), layer, optimizer), train_state(key(2), compose(*layer.blocks), optimizer)
    step, plain_step = train_step(mse, optimizer), train_step(mse, optimizer)
    for _ in range(3):
        state, _ = step(state, (X, target))
        plain, _ = plain_step(plain, (X, target))
    assert tree.equal(state.model.stacked, tree.stack(plain.model))


def test_the_axis_of_the_blocks_makes_no_matrix() -> None:
    layer = repeat(2, linear(3, 3), repeat(2, linear(3, 3)))
    places = zip(tree.trainable_paths(layer), tree.trainable_leaves(layer), strict=True)
    assert [path for path, leaf in places if is_matrix(path, leaf)] == [".stacked[0].weight", ".stacked[1].stacked[0].weight"]


def test_a_summary_counts_all_blocks() -> None:
    assert summary(compose(repeat(5, linear(3, 3))), (4, 3)).parameters == 5 * 12


# --- Types, shapes and errors ------------------------------------------------------------------------------------------


def test_it_is_typed_part_by_part() -> None:
    layer = initialize(key(0), repeat(2, residual(linear(3, 3)), Tanh()))
    grads, grad_x = vjp(layer, X, X)
    assert_type(grads.stacked[1], Tanh)
    assert_type(grad_x, Tensor)
    assert isinstance(grads.stacked[0], Residual)
    assert grads.stacked[0].layers[0].weight.shape == (2, 3, 3)


def test_the_shape_is_kept() -> None:
    assert output_shape(repeat(3, linear(25, 25)), Shape(10, 25)).sizes == (10, 25)
    with pytest.raises(ValueError, match=r"^Repeat expects 3 features but layer 1 \(Linear\) gives 4 features$"):
        repeat(3, linear(3, 4))  # type: ignore[layer-misfit]  # the point
    with pytest.raises(ValueError, match=r"must keep the shape of their input, but make \(12,\) of \(4, 3\)"):
        apply(repeat(2, Flatten(0)), X)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="repeat's count must be at least 1, not 0"):
        repeat(0, Tanh())
    with pytest.raises(ValueError, match="repeat's count must be at least 1, not -1"):
        Repeat((Tanh(),), -1)
    with pytest.raises(ValueError, match="at least one layer"):
        repeat(2)
    with pytest.raises(TypeError, match="layer 1 is the class Tanh"):
        repeat(2, Tanh)
    with pytest.raises(ValueError, match=r"2 blocks have a first axis of that size, but here is one of shape \(3, 3\)"):
        Repeat((linear(3, 3),), 2)
    with pytest.raises(ValueError, match="Linear expects 3 features") as info:
        apply(initialize(key(0), compose(Tanh(), repeat(2, checkpoint(linear(3, 3))))), torch.ones(4, 5))
    assert "in model[1]" in info.value.__notes__[-1]


# --- Stacks ------------------------------------------------------------------------------------------------------------


def test_stack_and_unstack_undo_each_other() -> None:
    trees = [initialize(key(seed), compose(linear(2, 3, bias=False), ReLU())) for seed in range(3)]
    stacked = tree.stack(trees)
    assert stacked[0].weight.shape == (3, 3, 2)
    assert stacked[0].bias is None
    assert tree.equal(tree.unstack(stacked, 3), trees)
    assert tree.unstack((ReLU(), ()), 2)[1][1] == ()
    assert len(tree.unstack(ReLU(), 4)) == 4
    with pytest.raises(TypeError, match="tree 0 and tree 1 are not of the same structure"):
        tree.stack([linear(2, 3), linear(2, 3), ReLU()][1:])
    with pytest.raises(TypeError, match=r"some of the trees have a tensor and others None: \(float32\[3\], None\)"):
        tree.stack([linear(2, 3), linear(2, 3, bias=False)])
