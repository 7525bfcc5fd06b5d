"""Layers that rearrange, and layers made of layers."""

import re
from collections.abc import Callable
from typing import Protocol, Self, assert_type

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.layer import Layer, Model
from fundl.layers.activation import ReLU, Tanh
from fundl.layers.dropout import Dropout
from fundl.layers.linear import Linear
from fundl.layers.structure import (
    Checkpoint,
    Flatten,
    Identity,
    Parallel,
    Reshape,
    Residual,
    checkpoint,
    parallel,
    residual,
)
from fundl.model import apply, backward, backward_params, compose, forward, vjp
from fundl.random import key, normal


def random(*shape: int, seed: int = 0) -> Tensor:
    return normal(key(seed), shape, dtype=torch.float64)


def affine(size_in: int, size_out: int, seed: int = 0) -> Linear:
    return Linear(weight=random(size_out, size_in, seed=seed + 100), bias=random(size_out, seed=seed + 200))


@attrs.frozen(eq=False)
class FirstOnly(Layer[Tensor]):
    """A scale that cannot find the gradient of its input: it must not be asked for it."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["FirstOnly", Tensor]:
        raise AssertionError("the gradient of the input was asked for")

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> "FirstOnly":
        return FirstOnly((residuals * grad).sum())


@attrs.frozen(eq=False)
class Pair(Layer[None, Tensor, tuple[Tensor, Tensor]]):
    """A layer whose output is no tensor."""

    @override
    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        return (x, x), None

    @override
    def backward(self, residuals: None, grad: tuple[Tensor, Tensor]) -> tuple[Self, Tensor]:
        return self, grad[0] + grad[1]


# --- Rearranging ----------------------------------------------------------------------------------------------------


def test_identity_is_the_input_itself() -> None:
    x, grad = random(3), random(3, seed=1)
    y, residuals = forward(Identity(), x)
    assert y is x
    assert residuals is None
    assert vjp(Identity(), x, grad)[1] is grad


@pytest.mark.parametrize(
    ("layer", "before", "after"),
    [
        (Flatten(), (2, 3, 4), (2, 12)),
        (Flatten(), (2, 3), (2, 3)),
        (Flatten(), (0, 3, 4), (0, 12)),
        (Flatten(0), (2, 3), (6,)),
        (Flatten(2), (2, 3, 4, 5), (2, 3, 20)),
        (Flatten(-2), (2, 3, 4, 5), (2, 3, 20)),
        (Reshape((4, 3)), (2, 3, 4), (2, 4, 3)),
        (Reshape((2, -1)), (5, 3, 4), (5, 2, 6)),
        (Reshape((2, -1)), (0, 3, 4), (0, 2, 6)),
        (Reshape((-1, 3)), (2, 0, 3), (2, 0, 3)),
        (Reshape((0, -1)), (2, 0), (2, 0, 0)),
        (Reshape((-1,)), (5,), (5, 1)),
        (Reshape(()), (5, 1), (5,)),
    ],
    ids=repr,
)
def test_rearranging_keeps_the_order_and_is_undone_by_backward(
    layer: Flatten | Reshape, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    x = random(*before)
    y, residuals = forward(layer, x)
    assert y.shape == after
    assert torch.equal(y.flatten(), x.flatten())
    assert tree.leaves(residuals) == []
    grads, grad_x = vjp(layer, x, y)
    assert grads is layer
    assert torch.equal(grad_x, x)


def test_rearranging_takes_inputs_that_are_not_contiguous() -> None:
    x = random(2, 4, 3).transpose(1, 2)
    for layer in (Flatten(), Reshape((-1,))):
        assert torch.equal(apply(layer, x), x.contiguous().reshape(2, 12))
        assert torch.equal(vjp(layer, x, random(2, 12))[1].flatten(), random(24))


@pytest.mark.parametrize("layer", [Identity(), Flatten(), Reshape((6,)), compose(Flatten(), Reshape((3, 2)))], ids=repr)
def test_rearranging_takes_integers(layer: Model) -> None:
    x = torch.arange(12).reshape(2, 3, 2)
    assert apply(layer, x).dtype == torch.int64
    assert torch.equal(apply(layer, x).flatten(), torch.arange(12))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: apply(Flatten(), torch.zeros(3)), r"Flatten\(start=1\) needs .*shape is \(3,\): its number of axes is 1"),
        (lambda: apply(Flatten(-3), torch.zeros(3, 2)), r"Flatten\(start=-3\) needs an input that has this axis"),
        (lambda: Reshape((2, -2)), r"sizes must be 0 or more, and at most one of them -1, not \(2, -2\)"),
        (lambda: Reshape((-1, -1)), r"at most one of them -1, not \(-1, -1\)"),
        (lambda: apply(Reshape((3,)), torch.zeros(2, 4)), r"Reshape\(\(3,\)\) does not fit .*\(2, 4\): an example has 4 elem"),
        (lambda: apply(Reshape((3, -1)), torch.zeros(2, 4)), r"Reshape\(\(3, -1\)\) does not fit .*\(2, 4\)"),
        (lambda: apply(Reshape((0, -1)), torch.zeros(2, 4)), r"Reshape\(\(0, -1\)\) does not fit .*\(2, 4\)"),
        (lambda: apply(Reshape((1,)), torch.zeros(())), r"needs a batch of examples, but the input is a single number"),
    ],
)
def test_what_cannot_be_rearranged_is_refused(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


def test_a_shape_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Reshape's shape is a tuple of integers, such as \(3, 8, 8\), not 3"):
        Reshape(3)  # type: ignore[arg-type]  # the point


# --- Residual -------------------------------------------------------------------------------------------------------


def test_residual_adds_its_input_to_its_output() -> None:
    f = compose(affine(3, 4), Tanh(), affine(4, 3))
    x, grad = random(5, 3), random(5, 3, seed=1)
    layer = residual(*f)
    torch.testing.assert_close(apply(layer, x), x + apply(f, x), rtol=0, atol=0)
    grads, grad_x = vjp(layer, x, grad)
    inner_grads, inner_grad_x = vjp(f, x, grad)
    assert tree.equal(grads.layers, inner_grads)
    torch.testing.assert_close(grad_x, grad + inner_grad_x, rtol=0, atol=0)


def test_residual_is_parallel_with_the_identity() -> None:
    f = compose(affine(3, 3), Tanh())
    x, grad = random(5, 3), random(5, 3, seed=1)
    grads, grad_x = vjp(residual(*f), x, grad)
    other_grads, other_grad_x = vjp(parallel(Identity(), f), x, grad)
    assert tree.equal(grads.layers, other_grads.branches[1])
    torch.testing.assert_close(grad_x, other_grad_x, rtol=0, atol=0)


def test_residual_says_which_shapes_differ() -> None:
    with pytest.raises(ValueError, match=r"^Residual expects 3 features but layer 1 \(Linear\) gives 4 features$"):
        residual(affine(3, 4), Tanh())
    with pytest.raises(ValueError, match=r"^Residual expects 3 features but layer 1 \(Linear\) gives 1 feature$"):
        residual(affine(3, 1))  # though it could be broadcast
    with pytest.raises(ValueError, match=r"must be of one shape, but the input is \(5, 3\) and the output \(15,\)") as info:
        apply(compose(Tanh(), residual(Flatten(0))), random(5, 3))
    assert "in model[1]: Residual(" in info.value.__notes__[-1]


def test_residual_is_typed_part_by_part() -> None:
    layer = residual(affine(2, 2), Tanh())
    assert_type(layer, Residual[Linear, Tanh])
    x = random(3, 2)
    grads, grad_x = vjp(layer, x, x)
    assert_type(grads, Residual[Linear, Tanh])
    assert_type(grad_x, Tensor)
    assert_type(grads.layers[0].weight, Tensor)
    assert_type(vjp(compose(layer, Tanh()), x, x)[0], tuple[Residual[Linear, Tanh], Tanh])
    assert_type(backward(layer, forward(layer, x)[1], x), tuple[Residual[Linear, Tanh], Tensor])
    assert_type(backward_params(layer, forward(layer, x)[1], x), Residual[Linear, Tanh])
    assert grads.layers[0].weight.shape == (2, 2)


# --- Parallel -------------------------------------------------------------------------------------------------------


def test_parallel_adds_the_outputs_of_its_branches() -> None:
    first, second, third = affine(3, 4), compose(affine(3, 2, seed=1), Tanh(), affine(2, 4)), affine(3, 4, seed=2)
    x, grad = random(5, 3), random(5, 4, seed=1)
    layer = parallel(first, second, third)
    torch.testing.assert_close(apply(layer, x), apply(first, x) + apply(second, x) + apply(third, x))
    grads, grad_x = vjp(layer, x, grad)
    assert tree.equal(grads.branches, (vjp(first, x, grad)[0], vjp(second, x, grad)[0], vjp(third, x, grad)[0]))
    torch.testing.assert_close(grad_x, vjp(first, x, grad)[1] + vjp(second, x, grad)[1] + vjp(third, x, grad)[1])


@pytest.mark.parametrize("axis", [-2, -1, 0, 1])
def test_parallel_concatenates_the_outputs_of_its_branches(axis: int) -> None:
    first, second = Tanh(), compose(Identity(), ReLU())
    x = random(5, 3)
    layer = parallel(first, second, join="concatenate", axis=axis)
    y = torch.cat((apply(first, x), apply(second, x)), axis)
    assert torch.equal(apply(layer, x), y)
    grad = random(*y.shape, seed=1)
    grad_first, grad_second = grad.chunk(2, axis)
    _, grad_x = vjp(layer, x, grad)
    torch.testing.assert_close(grad_x, vjp(first, x, grad_first)[1] + vjp(second, x, grad_second)[1])


def test_parallel_concatenates_outputs_of_different_sizes() -> None:
    layer = parallel(affine(3, 1), affine(3, 4), Identity(), join="concatenate")
    x = random(5, 3)
    y, (sizes, kept) = forward(layer, x)
    assert y.shape == (5, 8)
    assert sizes is not None
    assert sizes.sizes == (1, 4, 3)
    assert tree.leaves(kept) == [x, x]
    grads, _ = vjp(layer, x, random(5, 8, seed=1))
    assert (grads.join, grads.axis) == ("concatenate", -1)
    assert grads.branches[0].weight.shape == (1, 3)
    assert grads.branches[1].weight.shape == (4, 3)


def test_parallel_takes_one_branch() -> None:
    x, grad = random(5, 3), random(5, 2, seed=1)
    for join in (parallel(affine(3, 2)), parallel(affine(3, 2), join="concatenate")):
        grads, grad_x = vjp(join, x, grad)
        assert tree.equal((grads.branches[0], grad_x), vjp(affine(3, 2), x, grad))


def test_parallel_lets_branches_look_up_integers() -> None:
    layer = parallel(Flatten(), Reshape((6,)), join="concatenate")
    assert apply(layer, torch.arange(12).reshape(2, 3, 2)).dtype == torch.int64


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            Parallel((affine(3, 4), affine(3, 2))),
            r"^Parallel expects 4 features but layer 2 \(Linear\) gives 2 features",
        ),
        (Parallel((affine(3, 4), affine(3, 1))), r"^Parallel expects 4 features but layer 2 \(Linear\) gives 1 feature"),
        (
            Parallel((affine(3, 4), affine(3, 2)), join="concatenate", axis=0),
            r"along axis 0, which all must have, and no other size may differ, but they are \(5, 4\), \(5, 2\)",
        ),
        (Parallel((affine(3, 4), Flatten(0)), join="concatenate"), r"along axis -1, .* but they are \(5, 4\), \(15,\)"),
        (Parallel((affine(3, 4), Identity()), join="concatenate", axis=2), r"along axis 2, which all must have"),
        (Parallel((Reshape((3, 1)), Identity()), join="concatenate", axis=2), r"but they are \(5, 3, 1\), \(5, 3\)"),
    ],
)
def test_outputs_that_cannot_be_joined_are_refused(layer: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(layer, random(5, 3))


def test_parallel_refuses_another_join() -> None:
    with pytest.raises(ValueError, match="parallel's join must be 'sum' or 'concatenate', not 'mean'"):
        parallel(Tanh(), join="mean")  # type: ignore[arg-type]  # the point


def test_parallel_is_typed_part_by_part() -> None:
    layer = parallel(affine(2, 2), (affine(2, 2), Tanh()))
    assert_type(layer, Parallel[Linear, tuple[Linear, Tanh]])
    x = random(3, 2)
    grads, grad_x = vjp(layer, x, x)
    assert_type(grads, Parallel[Linear, tuple[Linear, Tanh]])
    assert_type(grad_x, Tensor)
    assert_type(grads.branches[1][0].weight, Tensor)
    assert tree.paths(grads) == [
        ".branches[0].weight",
        ".branches[0].bias",
        ".branches[1][0].weight",
        ".branches[1][0].bias",
    ]


# --- Checkpoint -----------------------------------------------------------------------------------------------------


def test_checkpoint_keeps_its_input_alone() -> None:
    x = random(5, 3)
    y, (kept, statistics) = forward(checkpoint(affine(3, 4), Tanh(), Dropout(0.5, key(1)), affine(4, 2)), x)
    assert kept is x
    assert statistics == ()
    assert y.shape == (5, 2)


def test_checkpoint_gives_the_bits_of_its_layers() -> None:
    layers = compose(affine(3, 40), Tanh(), Dropout(0.5, key(1)), residual(affine(40, 40), Dropout(0.1, key(2))))
    x, grad = random(5, 3), random(5, 40, seed=1)
    assert tree.equal(forward(checkpoint(*layers), x)[0], forward(layers, x)[0])
    grads, grad_x = vjp(checkpoint(*layers), x, grad)
    assert tree.equal((grads.layers, grad_x), vjp(layers, x, grad))


def test_checkpoint_is_typed_part_by_part() -> None:
    layer = checkpoint(affine(2, 2), Tanh())
    assert_type(layer, Checkpoint[Linear, Tanh])
    x = random(3, 2)
    grads, grad_x = vjp(layer, x, x)
    assert_type(grads, Checkpoint[Linear, Tanh])
    assert_type(grad_x, Tensor)
    assert_type(grads.layers[0].weight, Tensor)
    assert grads.layers[0].weight.shape == (2, 2)


# --- All that are made of layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        residual(FirstOnly(torch.tensor(2.0)), Tanh()),
        parallel(FirstOnly(torch.tensor(2.0)), (FirstOnly(torch.tensor(3.0)), Tanh())),
        parallel(FirstOnly(torch.tensor(2.0)), (FirstOnly(torch.tensor(3.0)), Tanh()), join="concatenate"),
        checkpoint(FirstOnly(torch.tensor(2.0)), Tanh()),
        compose(Tanh(), checkpoint(residual(parallel((Tanh(), FirstOnly(torch.tensor(2.0)))), ReLU()))),
    ],
    ids=repr,
)
def test_backward_params_does_not_ask_for_the_gradient_of_the_input(layer: Model) -> None:
    x = torch.ones(4, 3)
    y, residuals = forward(layer, x)
    grads = backward_params(layer, residuals, torch.ones_like(y))
    assert tree.flatten(grads)[1] == tree.flatten(layer)[1]
    assert all(leaf != 0 for leaf in tree.leaves(grads))
    with pytest.raises(AssertionError, match="the gradient of the input was asked for"):
        vjp(layer, x, torch.ones_like(y))


class Make(Protocol):
    def __call__(self, *layers: object) -> object: ...


@pytest.mark.parametrize("make", [residual, parallel, checkpoint])
def test_only_layers_are_accepted(make: Make) -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        make()
    with pytest.raises(ValueError, match="layer 2 is an empty tuple"):
        make(Tanh(), ())
    with pytest.raises(TypeError, match=r"layer 1 is the class Tanh, not a layer: write Tanh\(\.\.\.\)"):
        make(Tanh)
    with pytest.raises(TypeError, match="layer 2 is of type float, not a layer or a tuple of layers"):
        make((Tanh(), ReLU()), 0.5)


@pytest.mark.parametrize("layer", [residual(Pair()), parallel(Tanh(), Pair()), checkpoint(Pair())], ids=repr)
def test_an_output_that_is_no_tensor_is_refused(layer: Model) -> None:
    with pytest.raises(TypeError, match=r"the layers inside must give a tensor, not \(float64\[2\], float64\[2\]\)"):
        apply(layer, random(2))


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (residual(Tanh(), affine(4, 4)), r"in model\[1\](\.layers)?\[1\]: Linear\("),
        (checkpoint(Tanh(), affine(4, 3)), r"in model\[1\](\.layers)?\[1\]: Linear\("),
        (parallel(Tanh(), affine(4, 4)), r"in model\[1\](\.branches)?\[1\]: Linear\("),
        (parallel(Tanh(), (Tanh(), Tanh(), affine(4, 4))), r"in model\[1\](\.branches)?\[1\]\[2\]: Linear\("),
    ],
    ids=repr,
)
def test_an_error_inside_says_where(layer: Model, place: str) -> None:
    with pytest.raises(ValueError, match="Linear expects 4 features") as info:
        apply(compose(Tanh(), layer), random(5, 3))
    (note,) = info.value.__notes__
    assert re.match(place, note)


def test_layers_inside_are_records_of_the_tree() -> None:
    model = compose(residual(affine(2, 2)), checkpoint(parallel(Tanh(), affine(2, 2))))
    names = [type(record).__name__ for record in tree.records(model)]
    assert names == ["Residual", "Linear", "Checkpoint", "Parallel", "Tanh", "Linear"]
    doubled = tree.map(lambda leaf: 2 * leaf, model)
    assert_type(doubled, tuple[Residual[Linear], Checkpoint[Parallel[Tanh, Linear]]])
    assert torch.equal(doubled[1].layers[0].branches[1].weight, 2 * affine(2, 2).weight)
