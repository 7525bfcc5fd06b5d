"""Batches of sequences of different lengths."""

import pytest
import torch

from fundl import (
    Dropout,
    Masked,
    MeanOfPositions,
    ReLU,
    apply,
    assert_trees_close,
    backward,
    batch_norm,
    calibrate,
    forward,
    from_masked,
    group_norm,
    initialize,
    instance_norm,
    key,
    linear,
    on_masked,
    output_shape,
    over_time,
    parallel,
    track,
    tree,
    vjp,
    with_mask,
)
from fundl._common.running import run_forward
from fundl.shapes import Shape
from tests.samples import normal, with_values
from tests.samples.masked import MASK, mean_of_real


def test_a_mask_is_of_bools() -> None:
    with pytest.raises(TypeError, match=r"a mask is of dtype torch.bool, True where a position is real, not torch.float32"):
        Masked(normal(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"a mask is of dtype torch.bool"):
        with_mask(MeanOfPositions(), torch.ones(2, 3))


def test_a_mask_is_of_the_first_two_axes() -> None:
    message = r"a mask is of shape \(B, T\), the first two axes of the values \(2, 4\), not of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        Masked(normal(2, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"not of shape \(2,\)"):
        Masked(normal(2), torch.ones(2, dtype=torch.bool))


def test_with_mask_fills_every_mask_and_takes_it_out_again() -> None:
    model = (Dropout(0.5), parallel(MeanOfPositions(), (ReLU(), MeanOfPositions())))
    masked = with_mask(model, MASK)
    assert masked[1].branches[0].mask is MASK
    assert masked[1].branches[1][1].mask is MASK
    assert tree.equal(with_mask(masked, None), model)
    without = linear(2, 3)
    assert with_mask(without, MASK) is without


def test_the_mask_of_the_input_is_heeded_and_the_model_has_none() -> None:
    model = from_masked(MeanOfPositions())
    x = Masked(normal(5, 4, 3), MASK)
    torch.testing.assert_close(apply(model, x), mean_of_real(x.values, MASK))
    grads, grad_x = vjp(model, x, normal(5, 3))
    assert grads.layers[0].mask is None
    assert not grad_x.values[~MASK].any()


def test_a_mask_of_a_layers_own_is_kept() -> None:
    own = torch.ones_like(MASK)
    model = from_masked(MeanOfPositions(own))
    x = Masked(normal(5, 4, 3), MASK)
    torch.testing.assert_close(apply(model, x), x.values.mean(1))
    assert vjp(model, x, normal(5, 3))[0].layers[0].mask is own


def test_the_gradient_of_a_mask_is_zeros_that_take_no_memory() -> None:
    _, grad_x = vjp(on_masked(with_values(linear(3, 3))), Masked(normal(5, 4, 3), MASK), Masked(normal(5, 4, 3), MASK))
    assert grad_x.mask.dtype == torch.bool
    assert grad_x.mask.shape == MASK.shape
    assert not grad_x.mask.any()
    assert grad_x.mask.untyped_storage().nbytes() == 1


def test_what_is_not_masked_is_told() -> None:
    with pytest.raises(TypeError, match=r"the input must be Masked\(values, mask\), not float64\[5, 4, 3\]"):
        run_forward(from_masked(MeanOfPositions()), normal(5, 4, 3))


def test_layers_on_a_masked_batch_must_keep_its_positions() -> None:
    with pytest.raises(ValueError, match=r"a mask is of shape \(B, T\), the first two axes of the values \(5, 3\)"):
        apply(on_masked(MeanOfPositions()), Masked(normal(5, 4, 3), MASK))


def test_the_mean_of_positions_needs_positions() -> None:
    with pytest.raises(ValueError, match=r"MeanOfPositions expects an input of shape \(B, T, F\), but it is of shape \(5,\)"):
        apply(MeanOfPositions(), normal(5))
    with pytest.raises(ValueError, match=r"of shape \(5, 4, F\) by its mask, but it is of shape \(5, 3, 2\)"):
        apply(MeanOfPositions(MASK), normal(5, 3, 2))


def test_no_positions_have_the_mean_0() -> None:
    y, residuals = forward(MeanOfPositions(), normal(2, 0, 3))
    assert y.tolist() == [[0.0] * 3] * 2
    assert backward(MeanOfPositions(), residuals, y)[1].shape == (2, 0, 3)


def test_shapes_are_those_of_the_values() -> None:
    assert output_shape(from_masked(linear(3, 4), MeanOfPositions()), Shape(5, 4, 3)).sizes == (5, 4)
    message = r"layer 2 \(Linear\) expects 3 features but layer 1 \(Linear\) gives 4 features"
    with pytest.raises(ValueError, match=message):
        on_masked(linear(3, 4), linear(3, 4))  # type: ignore[layer-misfit]  # the same message
    with pytest.raises(ValueError, match=message):
        from_masked(linear(3, 4), linear(3, 4))  # type: ignore[layer-misfit]  # the same message


def test_norms_heed_a_mask() -> None:
    """Padding has no part in statistics, whatever stands there, and no gradient."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = normal(2, 3, 4)
    padded = torch.where(mask.unsqueeze(2), x, torch.nan)
    norm = initialize(key(0), batch_norm(4), dtype=torch.float64)
    model = on_masked(over_time(norm))
    y, residuals = forward(model, Masked(padded, mask))
    torch.testing.assert_close(y.values[mask], apply(norm, x[mask]))
    assert not y.values[~mask].any()
    _, grad_x = backward(model, residuals, Masked(normal(2, 3, 4) + 1, mask))
    expected = vjp(norm, x[mask], (normal(2, 3, 4) + 1)[mask])[1]
    torch.testing.assert_close(grad_x.values[mask], expected)
    assert not grad_x.values[~mask].any()
    tracked = track(model, residuals, momentum=0.5)
    alone = track(norm, forward(norm, x[mask])[1], momentum=0.5)
    assert_trees_close(tracked.layers[0].layers[0], alone, rtol=1e-10, atol=1e-12)
    found = calibrate(with_mask(over_time(norm), mask), [padded, padded]).layers[0]
    assert_trees_close([found.mean, found.var], [x[mask].mean(0), x[mask].var(0, correction=0)], rtol=1e-10, atol=1e-12)
    for layer in (group_norm(2, 4), instance_norm(4)):
        drawn = initialize(key(0), layer, dtype=torch.float64)
        signal = padded.transpose(1, 2)
        y_of_all = apply(with_mask(drawn, mask), signal)
        for example, real in enumerate(mask):
            if real.sum() > 1:
                torch.testing.assert_close(y_of_all[example, :, real], apply(drawn, signal[example : example + 1, :, real])[0])
        assert not y_of_all.transpose(1, 2)[~mask].any()
    with pytest.raises(ValueError, match=r"expects a mask that tells of each position of its input, of shape \(2, 5\) for"):
        apply(with_mask(norm, mask), normal(2, 4, 5))


def test_where_nothing_is_real_norms_give_nothing() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for layer in (batch_norm(4), group_norm(2, 4), instance_norm(4)):
        drawn = with_mask(initialize(key(0), layer, dtype=torch.float64), mask)
        y, residuals = forward(drawn, normal(2, 4, 3))
        grads, grad_x = backward(drawn, residuals, normal(2, 4, 3))
        assert not any(leaf.any() for leaf in (y, grad_x, *tree.trainable_leaves(grads)))
    norm = with_mask(initialize(key(0), batch_norm(4), dtype=torch.float64), mask)
    tracked = track(norm, forward(norm, normal(2, 4, 3))[1])
    assert tracked.mean is not None
    assert tracked.var is not None
    assert (tracked.mean == 0).all()
    assert (tracked.var == 1).all()
