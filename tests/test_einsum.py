"""Linear maps given by an equation."""

from collections.abc import Callable

import pytest
import torch

from fundl import Einsum, Shape, apply, compose, einsum, initialize, kaiming_normal, key, linear, output_shape, random, vjp
from fundl.shapes import Misfit

X = random.normal(key(1), (5, 3))


def test_a_matrix_is_linear() -> None:
    layer = initialize(key(0), linear(3, 4))
    same = Einsum(layer.weight, layer.bias, equation="...i,oi->...o")
    torch.testing.assert_close(apply(same, X), apply(layer, X))
    grads, grad_x = vjp(same, X, torch.ones(5, 4))
    expected, expected_x = vjp(layer, X, torch.ones(5, 4))
    torch.testing.assert_close((grads.weight, grads.bias, grad_x), (expected.weight, expected.bias, expected_x))


def test_fans_are_what_is_summed() -> None:
    heads = einsum("...d,dhk->...hk", {"d": 8, "h": 2, "k": 4})
    back = einsum("...hk,hkd->...d", {"h": 2, "k": 4, "d": 3})
    each = einsum("bhk,hkm->bhm", {"h": 2, "k": 4, "m": 3})
    assert (heads.own_fans(), back.own_fans(), each.own_fans()) == ((8, 8), (8, 3), (4, 3))
    wide = initialize(key(0), einsum("...d,dhk->...hk", {"d": 500, "h": 20, "k": 30}, weight_init=kaiming_normal()))
    assert wide.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.01)


def test_shapes_are_known_before_anything_runs() -> None:
    heads = einsum("...d,dhk->...hk", {"d": 8, "h": 2, "k": 4})
    back = einsum("bthk,hkd->btd", {"h": 2, "k": 4, "d": 3})
    assert output_shape(compose(heads, back), Shape(10, 5, 8)).sizes == (10, 5, 3)
    with pytest.raises(Misfit, match="layer 2 \\(Einsum\\) expects size 2 along axis -2"):
        compose(einsum("...d,dhk->...hk", {"d": 8, "h": 3, "k": 4}), back)
    with pytest.raises(Misfit, match="4 axes"):
        output_shape(back, Shape(10, 2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: einsum("bd", {}), "the equation 'bd' is not of an input and a weight: write it as"),
        (lambda: einsum("bd,dh,he->be", {}), "is not of an input and a weight"),
        (lambda: einsum("...d,dh->h", {"d": 1, "h": 1}), r"\.\.\. must stand in the input and in the output, or in neither"),
        (lambda: einsum("bdd,dh->bh", {"d": 1, "h": 1}), "'bdd' has 'd' twice"),
        (lambda: einsum("bde,dh->bh", {"d": 1, "h": 1}), "'e' is in one place alone"),
        (lambda: einsum("bd,dh->bhk", {"d": 1, "h": 1}), "'k' is in one place alone"),
        (lambda: einsum("bd,dh->bh", {"d": 1}), "sizes must have those of the weight's axes, 'd', 'h', and of no others, not"),
        (lambda: einsum("bd,dh->bh", {"d": 1, "h": 0}), "the size of 'h' must be at least 1, not 0"),
    ],
)
def test_equations_that_are_none_are_refused(make: Callable[[], Einsum], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_of_other_sizes_are_refused() -> None:
    layer = initialize(key(0), einsum("bthk,hkd->btd", {"h": 2, "k": 4, "d": 3}))
    for shape in ((5, 2, 4), (5, 1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"takes an input of shape \(b, t, 2, 4\), not"):
            apply(layer, torch.ones(shape))
    with pytest.raises(TypeError, match=r"Einsum's weight is torch.float32, but the input is torch.float64"):
        apply(layer, torch.ones(5, 1, 2, 4, dtype=torch.float64))


def test_axes_of_any_number_and_none() -> None:
    layer = initialize(key(0), einsum("...d,dh->...h", {"d": 3, "h": 2}))
    for lead in ((), (0,), (2, 0, 4), (1, 2, 3)):
        assert apply(layer, torch.ones(*lead, 3)).shape == (*lead, 2)
        grads, grad_x = vjp(layer, torch.ones(*lead, 3), torch.ones(*lead, 2))
        assert grads.bias is not None
        assert (grads.weight.shape, grads.bias.shape, grad_x.shape) == ((3, 2), (2,), (*lead, 3))
