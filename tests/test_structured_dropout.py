"""Dropout of whole channels and whole examples."""

import math
from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    ChannelDropout,
    DropPath,
    ReLU,
    apply,
    compose,
    ensemble,
    forward,
    jit,
    key,
    linear,
    rekey,
    residual,
    tree,
    vjp,
)
from fundl.random import Key, bernoulli, normal, of_part

AnyDropout = ChannelDropout | DropPath
Make = Callable[[float, Key | None], AnyDropout]

MAKERS: Final[dict[str, Make]] = {
    "channels": ChannelDropout,
    "features": lambda rate, key: ChannelDropout(rate, key, axis=-1),
    "path": DropPath,
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every_kind
def test_it_is_the_identity_without_a_key_or_a_rate(make: Make) -> None:
    x = torch.randn(3, 2, 4)
    for layer in (make(0.5, None), make(0.0, key(1))):
        y, residuals = forward(layer, x)
        assert y is x
        assert residuals is None
        assert vjp(layer, x, x)[1] is x
        assert layer.draws == (layer.rate > 0)


def test_channels_are_dropped_as_a_whole() -> None:
    x = torch.rand(50, 40, 3, 2) + 1
    y, mask = forward(ChannelDropout(0.3, key(1)), x)
    assert mask is not None
    assert mask.shape == (50, 40, 1, 1)
    assert torch.equal(mask.flatten(), bernoulli(key(1), (50, 40), probability=0.7).flatten())
    torch.testing.assert_close(y, torch.where(mask, x / 0.7, 0.0))
    assert abs((~mask).sum().item() - 600) < 4 * math.sqrt(2000 * 0.3 * 0.7)
    _, grad_x = vjp(ChannelDropout(0.3, key(1)), x, torch.ones_like(x))
    assert torch.equal(grad_x == 0, y == 0)


def test_features_are_dropped_at_all_steps() -> None:
    y = apply(ChannelDropout(0.5, key(1), axis=-1), torch.ones(20, 7, 30))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert set(y[:, 0].flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(y, apply(ChannelDropout(0.5, key(1), axis=2), torch.ones(20, 7, 30)))


def test_paths_are_dropped_example_by_example() -> None:
    block = residual(ReLU(), DropPath(0.25, key(1)))
    x = torch.rand(1000, 3) + 1
    y = apply(block, x)
    goes_past = (y == x).all(1)
    torch.testing.assert_close(y[~goes_past], x[~goes_past] * (1 + 1 / 0.75))
    assert abs(goes_past.sum().item() - 250) < 4 * math.sqrt(1000 * 0.25 * 0.75)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_shapes_and_layouts(make: Make, dtype: torch.dtype) -> None:
    for given in (torch.ones(0, 3, 2), torch.ones(1, 2), torch.ones(5, 4, 3, 2).to(memory_format=torch.channels_last)):
        x = given.to(dtype)
        y, grad_x = apply(make(0.5, key(1)), x), vjp(make(0.5, key(1)), x, x)[1]
        assert y.dtype == grad_x.dtype == dtype
        assert y.shape == grad_x.shape == x.shape
        assert set(y.flatten().tolist()) <= {0.0, 2.0}
    assert apply(make(0.5, key(1)), torch.empty(2, 3, device="meta")).is_meta


@every_kind
def test_not_a_number_stays_one(make: Make) -> None:
    x = torch.full((9, 9), math.nan)
    assert apply(make(0.5, key(1)), x).isnan().all()
    assert vjp(make(0.5, key(1)), torch.ones(9, 9), x)[1].isnan().all()


@every_kind
def test_processes_draw_their_rows_of_one_mask(make: Make) -> None:
    x = normal(key(2), (15, 4, 3))
    whole = apply(make(0.5, key(1)), x)
    for place in range(3):
        own = make(0.5, of_part(key(1), torch.tensor([place, 3, 5])))
        assert torch.equal(apply(own, x[place::3]), whole[place::3])


@every_kind
def test_compiled_and_in_an_ensemble_it_draws_the_same(make: Make) -> None:
    x = normal(key(2), (6, 4, 3))

    @jit
    def dropped(some_key: Tensor, x: Tensor) -> Tensor:
        return apply(make(0.5, some_key), x)

    assert torch.equal(dropped(key(1), x), apply(make(0.5, key(1)), x))
    both = apply(ensemble.stack([make(0.5, key(1)), make(0.5, key(2))]), torch.stack((x, x)))
    assert torch.equal(both, torch.stack([apply(make(0.5, key(seed)), x) for seed in (1, 2)]))


def test_rekey_gives_them_keys() -> None:
    model = rekey(compose(linear(2, 2), DropPath(0.1), residual(ChannelDropout(0.2), DropPath(0.0))), key(0))
    keys = [record.key for record in tree.records(model) if isinstance(record, AnyDropout)]
    assert [key is not None for key in keys] == [True, True, False]


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"ChannelDropout's rate is the probability to drop a channel, .* not 1\.0"):
        ChannelDropout(1.0)
    with pytest.raises(ValueError, match=r"DropPath's rate is the probability to drop an example, .* not nan"):
        DropPath(math.nan)
    with pytest.raises(TypeError, match="DropPath's key is a tensor made by key"):
        DropPath(0.5, 7)  # type: ignore[arg-type]  # the point
    with pytest.raises(ValueError, match="ChannelDropout's axis is that of the channels, 1 or -1, say: 0 is that of the batch"):
        ChannelDropout(0.5, axis=0)
    for shape, axis in (((5,), 1), ((5,), -1), ((5, 2), -2), ((5, 2), 2), ((), 1)):
        with pytest.raises(ValueError, match="takes an input with this axis after that of the batch, but the input's shape is"):
            apply(ChannelDropout(0.5, key(0), axis=axis), torch.ones(shape))
