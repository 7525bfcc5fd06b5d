"""A gradient of another form than the output is refused by whoever can know it: no kernel reads what is behind its memory."""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fundl import (
    Duplicate,
    LayerNorm,
    Linear,
    PixelShuffle,
    PixelUnshuffle,
    SpectralNorm,
    WeightNorm,
    WeightStandardization,
    backward,
    backward_input,
    backward_params,
    forward,
    key,
    mse,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
)
from fundl._common.running import run_backward, run_backward_params, run_forward
from tests.samples import SAMPLES, Sample, convolution, embedding, normal, normalization, pooling, resampling
from tests.test_layers import vjp_any

IMAGES = Linear(normal(256, 3), None), LayerNorm(256, normal(256), normal(256))


def other_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes that are not the one, though they may broadcast to it, or hold as many numbers."""
    size, *rest = shape
    others = [
        (1, *rest),
        (*shape[:-1], 1),
        (size + 1, *rest),
        (*shape[:-1], shape[-1] + 1),
        shape[::-1],
        (*rest,),
        (1, *shape),
        (),
    ]
    yield from (other for other in others if other != shape)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_vjp_refuses_every_other_shape(sample: Sample) -> None:
    output, _ = run_forward(sample.model, sample.x)
    if not isinstance(output, Tensor) or not output.ndim:
        return
    for shape in list(other_shapes(tuple(output.shape)))[:3]:
        with pytest.raises(ValueError, match="must have its shape") as caught:
            vjp_any(sample.model, sample.x, output.new_zeros(shape))
        assert str(caught.value).endswith(f"must have its shape {tuple(output.shape)}, not {shape}")


TRUSTING = [
    sample
    for family in (convolution, embedding, normalization, pooling, resampling)
    for sample in family.SAMPLES
    if not isinstance(sample.model, PixelShuffle | PixelUnshuffle | SpectralNorm | WeightNorm | WeightStandardization)
]  # whose kernels do not ask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sample", TRUSTING, ids=lambda sample: sample.name)
def test_backward_refuses_what_its_kernel_would_take(sample: Sample, dtype: torch.dtype) -> None:
    model, x = tree.cast_to((sample.model, sample.x), dtype)
    output, residuals = run_forward(model, x)
    assert isinstance(output, Tensor)
    for shape in other_shapes(tuple(output.shape)):
        with pytest.raises(ValueError, match="must have its shape") as caught:
            run_backward(model, residuals, output.new_zeros(shape))
        assert str(caught.value).endswith(f"must have its shape {tuple(output.shape)}, not {shape}")


# --- Losses -------------------------------------------------------------------------------------------------------------


def wrong(prediction: Tensor, _target: Tensor, *, form: str = "shape") -> tuple[Tensor, Tensor]:
    grads = {"shape": prediction[:1], "dtype": prediction.float(), "device": prediction.to("meta")}
    return prediction.sum(), grads[form]


REFUSED = {
    "shape": (ValueError, r"wrong returns its value and .* prediction, which must have its shape \(64, 256\), not \(1, 256\)$"),
    "dtype": (TypeError, r"which must be of its dtype torch.float64, not torch.float32$"),
    "device": (ValueError, r"which must be on its device cpu, not on meta$"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_loss_of_ones_own_that_returns_another_gradient(form: str) -> None:
    loss, (error, message) = functools.partial(wrong, form=form), REFUSED[form]
    x, target = normal(64, 3), normal(64, 256)
    with pytest.raises(error, match=message):
        value_and_grad(loss, IMAGES, x, target)
    state = train_state(key(0), IMAGES, sgd(0.1))
    with pytest.raises(error, match=message):
        train_step(loss, sgd(0.1))(state, (x, target))


def test_above_layer_norm() -> None:
    """Its kernel read on behind the gradient, and gave NaN, or 3.5e31."""
    output, residuals = forward(IMAGES, normal(64, 3))
    message = r"^grad is the gradient with respect to the output, and must have its shape \(64, 256\), not \(1, 256\)"
    for function in (backward, backward_params, backward_input):
        with pytest.raises(ValueError, match=message) as caught:
            function(IMAGES, residuals, output[:1])
        assert caught.value.__notes__[0].startswith("in model[1]: LayerNorm(")
    with pytest.raises(ValueError, match=message):
        vjp(IMAGES, normal(64, 3), output[:1])


def test_dtypes() -> None:
    with pytest.raises(TypeError, match=r"^grad is .* must be of its dtype torch.float64, not torch.float32$"):
        vjp(IMAGES, normal(2, 3), torch.ones(2, 256))


def test_trees() -> None:
    layer, x = Duplicate(), normal(2, 3)
    with pytest.raises(ValueError, match=r"^grad is .* to the output at \[1\], and must have its shape \(2, 3\), not \(3,\)$"):
        vjp(layer, x, (x, x[0]))
    with pytest.raises(TypeError, match="not of the same structure"):
        vjp_any(layer, x, x)


def test_a_good_loss_is_none_the_wiser() -> None:
    value, grads = value_and_grad(mse, IMAGES, normal(64, 3), normal(64, 256))
    _, residuals = forward(IMAGES, normal(64, 3))
    assert value.ndim == 0
    assert tree.equal(grads, run_backward_params(IMAGES, residuals, mse(forward(IMAGES, normal(64, 3))[0], normal(64, 256))[1]))
