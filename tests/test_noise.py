"""Alpha dropout and Gaussian noise."""

import math
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import SELU, AlphaDropout, GaussianNoise, apply, compose, ensemble, forward, jit, key, rekey, tree, vjp
from fundl.random import normal, of_part, of_piece

X: Final = normal(key(2), (15, 4, 6))
LAYERS: Final = (AlphaDropout(0.3), GaussianNoise(0.3))
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=repr)


def with_key(layer: AlphaDropout | GaussianNoise, own: Tensor) -> AlphaDropout | GaussianNoise:
    return AlphaDropout(layer.rate, own) if isinstance(layer, AlphaDropout) else GaussianNoise(layer.std, own)


def test_they_are_the_identity_without_a_key_or_a_rate() -> None:
    for layer in (*LAYERS, AlphaDropout(0.0, key(1)), GaussianNoise(0.0, key(1))):
        y, residuals = forward(layer, X)
        assert y is X
        assert residuals is None
        assert vjp(layer, X, X)[1] is X


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_alpha_dropout_keeps_mean_and_variance(rate: float) -> None:
    x = normal(key(3), (400_000,))
    x = (x - x.mean()) / x.std()
    y = apply(AlphaDropout(rate, key(1)), x)
    assert abs(y.mean().item()) < 0.01
    assert y.var().item() == pytest.approx(1, abs=0.02)
    dropped = y == y.mode().values
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.01)


def test_alpha_dropout_is_that_of_torch() -> None:
    """Which has another mask, but the same two lines."""
    torch.manual_seed(0)
    x = torch.ones(1000, dtype=torch.float64)
    theirs = torch.nn.functional.alpha_dropout(x, 0.3, training=True)
    ours = apply(AlphaDropout(0.3, key(1)), x)
    for of_ours, of_theirs in ((ours.min(), theirs.min()), (ours.max(), theirs.max())):
        torch.testing.assert_close(of_ours, of_theirs, rtol=1e-12, atol=1e-12)


def test_what_alpha_dropout_drops_may_be_infinite() -> None:
    x = torch.full((100,), math.inf)
    y, mask = forward(AlphaDropout(0.5, key(1)), x)
    assert mask is not None
    assert torch.equal(y == math.inf, mask)
    assert y[~mask].isfinite().all()


def test_noise_is_normal_and_has_no_gradient() -> None:
    x = torch.ones(100_000)
    noise = apply(GaussianNoise(0.2, key(1)), x) - x
    torch.testing.assert_close(noise, normal(key(1), (100_000,), std=0.2), atol=1e-6, rtol=0)
    assert vjp(GaussianNoise(0.2, key(1)), x, x)[1] is x


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_shapes(layer: AlphaDropout | GaussianNoise, dtype: torch.dtype) -> None:
    drawing = with_key(layer, key(1))
    for shape in ((), (0, 3), (3, 2, 4)):
        x = torch.ones(shape, dtype=dtype)
        y, grad_x = apply(drawing, x), vjp(drawing, x, x)[1]
        assert y.dtype == grad_x.dtype == dtype
        assert y.shape == grad_x.shape == shape
    x = X.to(dtype)
    wide = apply(drawing, x.double())
    torch.testing.assert_close(
        apply(drawing, x).double(), wide, rtol=torch.finfo(dtype).eps * 2, atol=1e-2 if dtype.itemsize < 4 else 1e-6
    )
    assert apply(drawing, torch.empty(2, 3, device="meta")).is_meta


@every_layer
def test_processes_draw_their_rows_and_their_pieces(layer: AlphaDropout | GaussianNoise) -> None:
    whole = apply(with_key(layer, key(1)), X)
    for place in range(3):
        own = of_part(key(1), torch.tensor([place, 3, 5]))
        assert torch.equal(apply(with_key(layer, own), X[place::3]), whole[place::3])
        piece = of_piece(key(1), torch.tensor([place, 3]))
        columns = slice(2 * place, 2 * place + 2)
        assert torch.equal(apply(with_key(layer, piece), X[..., columns]), whole[..., columns])


@every_layer
def test_compiled_and_in_an_ensemble_they_draw_the_same(layer: AlphaDropout | GaussianNoise) -> None:
    run = jit(lambda some_key, x: apply(with_key(layer, some_key), x))
    torch.testing.assert_close(run(key(1), X), apply(with_key(layer, key(1)), X), rtol=1e-6, atol=1e-6)
    both = apply(ensemble.stack([with_key(layer, key(1)), with_key(layer, key(2))]), torch.stack((X, X)))
    assert torch.equal(both, torch.stack([apply(with_key(layer, key(seed)), X) for seed in (1, 2)]))


def test_rekey_gives_them_keys() -> None:
    model = rekey(compose(SELU(), AlphaDropout(0.1), GaussianNoise(0.1), GaussianNoise(0.0)), key(0))
    keys = [record.key for record in tree.records(model) if isinstance(record, AlphaDropout | GaussianNoise)]
    assert [key is not None for key in keys] == [True, True, False]


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"AlphaDropout's rate is the probability to drop an element, .* not 1\.0"):
        AlphaDropout(1.0)
    with pytest.raises(ValueError, match="GaussianNoise's std must be a finite number of 0 or more, not nan"):
        GaussianNoise(math.nan)
    with pytest.raises(TypeError, match="GaussianNoise's key is a tensor made by key"):
        GaussianNoise(0.5, 7)  # type: ignore[arg-type]  # the point
