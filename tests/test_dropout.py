"""Dropout: the mask, its key, and how keys reach the layers of a model."""

import math
from typing import Final, Literal, assert_type

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.layer import Layer
from fundl.layers.activation import ReLU
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.linear import Linear, linear
from fundl.layers.structure import Parallel, Residual, checkpoint, parallel, residual
from fundl.model import apply, backward_params, compose, forward, vjp
from fundl.random import bernoulli, key, split
from fundl.tree import BUFFER

DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


# --- The layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [Dropout(0.5), Dropout(0.0), Dropout(0.0, key(1))], ids=repr)
def test_is_the_identity_without_a_key_or_a_rate(dropout: Dropout) -> None:
    x, grad = torch.randn(3), torch.randn(3)
    y, residuals = forward(dropout, x)
    assert y is x
    assert residuals is None
    assert vjp(dropout, x, grad)[1] is grad


def test_output_is_the_masked_input_scaled_up() -> None:
    x = torch.randn(4, 5)
    y, mask = forward(Dropout(0.2, key(1)), x)
    assert mask is not None
    assert torch.equal(mask, bernoulli(key(1), (4, 5), probability=0.8))
    torch.testing.assert_close(y, torch.where(mask, x / 0.8, 0.0))


def test_keeps_one_byte_per_element() -> None:
    _, residuals = forward(Dropout(0.5, key(1)), torch.randn(4, 5, dtype=torch.float64))
    assert tree.nbytes(residuals) == 20


def test_gradient_goes_through_the_same_mask() -> None:
    dropout, x, grad = Dropout(0.3, key(1)), torch.ones(1000), torch.randn(1000)
    y = apply(dropout, x)
    assert torch.equal(vjp(dropout, x, grad)[1] == 0, y == 0)
    torch.testing.assert_close(vjp(dropout, x, grad)[1], grad * y)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drops_at_the_rate_and_keeps_the_mean(rate: float) -> None:
    count = 100_000
    y = apply(Dropout(rate, key(1)), torch.ones(count))
    dropped = (y == 0).sum().item()
    assert abs(dropped - rate * count) < 4 * math.sqrt(count * rate * (1 - rate))
    assert y.max().item() == pytest.approx(1 / (1 - rate))


def test_same_key_same_mask() -> None:
    x = torch.ones(1000)
    assert torch.equal(apply(Dropout(0.5, key(1)), x), apply(Dropout(0.5, key(1)), x))
    assert not torch.equal(apply(Dropout(0.5, key(1)), x), apply(Dropout(0.5, key(2)), x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2, 4)], ids=str)
def test_keeps_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=dtype)
    y, grad_x = apply(Dropout(0.5, key(1)), x), vjp(Dropout(0.5, key(1)), x, x)[1]
    assert y.dtype == grad_x.dtype == dtype
    assert y.shape == grad_x.shape == shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_meta_input_gives_the_shape() -> None:
    x = torch.empty(2, 3, device="meta")
    assert apply(Dropout(0.5, key(1)), x).shape == (2, 3)


def test_the_key_is_a_buffer() -> None:
    dropout = Dropout(0.5, key(1))
    x = torch.ones(3)
    grads, _ = vjp(dropout, x, x)
    assert grads.key is dropout.key
    assert backward_params(dropout, forward(dropout, x)[1], x).key is dropout.key
    assert tree.count(dropout) == 0
    assert not tree.trainable_leaves(dropout)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"probability to drop an element, from 0 up to, but not including, 1, not {rate}"):
        Dropout(rate)


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Dropout's key is a tensor made by key\(seed\), split or fold_in, not 7"):
        Dropout(0.5, 7)  # type: ignore[arg-type]  # the point
    with pytest.raises(ValueError, match="one key is needed, but here are 3, as from split"):
        apply(Dropout(0.5, split(key(0), 3)), torch.ones(2))


# --- Keys for a model -----------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Noise(Layer[None]):
    """A user's stochastic layer, around another layer."""

    inner: Dropout
    key: Tensor | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Noise", Tensor]:
        return self, grad


@attrs.frozen(eq=False)
class Projections(Layer[None]):
    """A layer whose key is a parameter, as that of attention."""

    key: Linear

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Projections", Tensor]:
        return self, grad


def keys_of(model: object) -> list[Tensor | None]:
    return [record.key for record in tree.records(model) if isinstance(record, Dropout | Noise)]


def test_rekey_splits_the_key_over_the_layers_in_order() -> None:
    model = compose(
        Dropout(0.1),
        linear(2, 2),
        residual(Dropout(0.2), (ReLU(), Dropout(0.3))),
        Noise(Dropout(0.4)),
        parallel(Dropout(0.5), checkpoint(Dropout(0.6))),
    )
    rekeyed = rekey(model, key(7))
    keys = keys_of(rekeyed)
    assert len(keys) == 7
    assert tree.equal(keys, [*split(key(7), 7)])
    rates = [record.rate for record in tree.records(rekeyed) if isinstance(record, Dropout)]
    assert rates == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert keys_of(model) == [None] * 7  # the old model is still there


def test_rekey_keeps_the_type_and_all_else() -> None:
    model = compose(linear(2, 2), Dropout(0.1), residual(Dropout(0.2)), parallel(ReLU(), Dropout(0.3)))
    rekeyed = rekey(model, key(7))
    assert_type(rekeyed, tuple[Linear[Literal[2], Literal[2]], Dropout, Residual[Dropout], Parallel[ReLU, Dropout]])
    assert rekeyed[0] is model[0]
    assert tree.equal(tree.trainable_leaves(rekeyed), tree.trainable_leaves(model))


def test_rekey_replaces_keys() -> None:
    once = rekey(compose(Dropout(0.1)), key(7))
    again = rekey(once, key(8))
    assert tree.equal(again, rekey(compose(Dropout(0.1)), key(8)))
    assert not tree.equal(again, once)


def test_rekey_takes_a_lone_layer() -> None:
    dropout = rekey(Dropout(0.1), key(7))
    assert_type(dropout, Dropout)
    assert tree.equal(dropout.key, split(key(7), 1)[0])


def test_layers_of_the_same_value_get_keys_of_their_own() -> None:
    dropout = Dropout(0.5)
    first, second = rekey(compose(dropout, dropout), key(7))
    assert not tree.equal(first, second)


def test_rekey_leaves_a_model_without_stochastic_layers_alone() -> None:
    model = compose(linear(2, 2), ReLU(), Projections(linear(2, 2)))
    assert rekey(model, key(7)) is model
    assert rekey((*model, Dropout(0.1)), key(7))[:3] == model


def test_rates_of_0_get_no_key_and_take_none_from_others() -> None:
    model = compose(Dropout(0.0), Dropout(0.1), residual(Dropout(0.0)), Dropout(0.2))
    keys = split(key(7), 4)
    with_draws = rekey(model, key(7))
    found = [record.key for record in tree.records(with_draws) if isinstance(record, Dropout)]
    assert found[0] is found[2] is None
    assert tree.equal((found[1], found[3]), (keys[1], keys[3]))
    alone = compose(Dropout(0.0))
    assert rekey(alone, key(7)) is alone
