"""Losses of torch.nn as losses of fundl, and back: what each option becomes; that they agree, the oracles' samples say."""

from functools import partial
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn

from fundl import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    ctc,
    gaussian_nll,
    huber,
    kl_divergence,
    log_cosh,
    mae,
    mse,
    multi_class_margin,
    multi_label_margin,
    pinball,
    poisson_nll,
    triplet,
    unreduced,
    weight_of,
    weighted,
)
from fundl.interop import torch_nn
from fundl.interop.torch_nn.losses import AnyLoss, converted
from tests.oracles.losses import evaluate, given_to, leaf

WEIGHT: Final = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
X: Final = torch.tensor([[0.3, -0.7, 1.1], [2.0, 0.4, -0.2]], dtype=torch.float64)
CLASSES: Final = torch.tensor([2, 0])
YES: Final = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


@attrs.frozen
class Case:
    """A module, what it is called with, and its loss."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    loss: AnyLoss
    options: dict[str, object] = attrs.field(factory=dict)


CASES: Final = [
    Case(nn.MSELoss(), (X, YES), mse),
    Case(nn.L1Loss(reduction="sum"), (X, YES), mae, {"reduction": "sum"}),
    Case(nn.HuberLoss(delta=0.5), (X, YES), huber, {"delta": 0.5}),
    Case(
        nn.KLDivLoss(reduction="batchmean", log_target=True),
        (X, X),
        kl_divergence,
        {"log_target": True, "reduction": "batch_mean"},
    ),
    Case(
        nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1),
        (X, CLASSES),
        cross_entropy,
        {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1},
    ),
    Case(nn.BCELoss(), (X.sigmoid(), YES), binary_cross_entropy),
    Case(nn.BCEWithLogitsLoss(pos_weight=WEIGHT), (X, YES), binary_cross_entropy_with_logits, {"pos_weight": WEIGHT}),
    Case(
        nn.PoissonNLLLoss(log_input=False, full=True, eps=1e-3),
        (X.exp(), 2 * YES),
        poisson_nll,
        {"log_input": False, "full": True, "epsilon": 1e-3},
    ),
    Case(nn.GaussianNLLLoss(full=True, eps=1e-4), (X, YES, X.exp()), gaussian_nll, {"full": True, "epsilon": 1e-4}),
    Case(nn.MultiMarginLoss(p=2, margin=0.5), (X, CLASSES), multi_class_margin, {"power": 2, "margin": 0.5}),
    Case(nn.MultiLabelMarginLoss(), (X, torch.tensor([[0, 2, -1], [1, -1, -1]])), multi_label_margin),
    Case(nn.TripletMarginLoss(margin=0.5, swap=True), (X, X + 0.5, X - 0.2), triplet, {"margin": 0.5, "swap": True}),
]


def options_of(loss: AnyLoss) -> tuple[object, dict[str, object]]:
    return (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})


def is_same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.module).__name__)
def test_both_ways(case: Case) -> None:
    loss, options = options_of(converted(case.module))
    assert loss is case.loss
    assert [*options] == [*case.options]
    assert all(map(is_same, options.values(), case.options.values()))
    back = torch_nn.loss_to_torch(partial(case.loss, **case.options))
    assert type(back) is type(case.module)
    variables = [leaf(case.inputs[place]) for place in given_to(case.module)]
    called: list[Tensor] = list(case.inputs)
    for place, variable in zip(given_to(case.module), variables, strict=True):
        called[place] = variable
    expected: Tensor = case.module(*called)
    assert torch.equal(expected, back(*called))
    value, grads = evaluate(case.module, case.inputs)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-5)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, variables), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


def test_weights_are_copies() -> None:
    weight = WEIGHT.clone()
    loss = torch_nn.loss_from_torch(nn.CrossEntropyLoss(weight))
    before = loss(X, CLASSES)[0]
    weight.zero_()
    assert torch.equal(loss(X, CLASSES)[0], before)


def test_a_converted_loss_knows_what_its_mean_divides_by() -> None:
    assert weight_of(torch_nn.loss_from_torch(nn.CrossEntropyLoss(WEIGHT)), X, CLASSES) == 2.5


def test_smooth_l1() -> None:
    assert torch_nn.loss_from_torch(nn.SmoothL1Loss()) is huber
    assert torch_nn.loss_from_torch(nn.SmoothL1Loss(beta=0.0)) is mae
    loss = torch_nn.loss_from_torch(nn.SmoothL1Loss(beta=0.25))
    value, grad = loss(X, YES)
    x = leaf(X)
    expected = nn.functional.smooth_l1_loss(x, YES, beta=0.25)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x)[0])
    masked, _ = weighted(loss)(X, (YES, torch.ones(2, 3, dtype=torch.float64)))
    torch.testing.assert_close(masked, value)
    again = torch_nn.loss_to_torch(loss)
    assert isinstance(again, nn.SmoothL1Loss)
    assert again.beta == 0.25


def test_losses_one_by_one() -> None:
    losses, grad = torch_nn.loss_from_torch(nn.MSELoss(reduction="none"))(X, YES)
    torch.testing.assert_close(losses, (X - YES) ** 2)
    torch.testing.assert_close(grad, 2 * (X - YES))


REFUSED: Final[list[tuple[nn.Module, str]]] = [
    (nn.BCELoss(WEIGHT), r"nn.BCELoss: it has a weight of each element.*weighted\(binary_cross_entropy\)"),
    (nn.MultiLabelSoftMarginLoss(reduction="sum"), r"has the mean over the classes all the same"),
    (nn.TripletMarginLoss(p=1), r"p=1.*the Euclidean norm"),
    (nn.CTCLoss(), r"reduction='mean' divides each loss by the number of its labels first"),
    (nn.Linear(2, 2), r"nn.Linear: it has no counterpart: write a loss"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=lambda part: type(part).__name__)
def test_what_cannot_be_converted(module: nn.Module, message: str) -> None:
    with pytest.raises(torch_nn.ConversionError, match=message):
        converted(module)


def test_a_derived_class_is_no_counterpart() -> None:
    class Mine(nn.MSELoss):
        pass

    with pytest.raises(torch_nn.ConversionError, match=r"it is derived from nn.MSELoss, and may compute something else"):
        converted(Mine())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (log_cosh, r"log_cosh: torch.nn has no such loss"),
        (partial(pinball, quantile=0.1), r"pinball: torch.nn has no such loss"),
        (unreduced(mse), r"of unreduced\(loss\), convert the loss"),
        (partial(mse, reduction="batch_mean"), r"reduction='batch_mean', which nn.MSELoss does not have"),
        (partial(cross_entropy, axis=-1), r"axis=-1, which nn.CrossEntropyLoss has no option for: leave it at 1"),
        (partial(binary_cross_entropy, label_smoothing=0.1), r"label_smoothing=0.1, which nn.BCELoss has no option for"),
        (ctc, r"its mean is over all labels"),
    ],
    ids=["log_cosh", "pinball", "unreduced", "batch_mean", "axis", "label_smoothing", "ctc"],
)
def test_what_has_no_module(loss: AnyLoss, message: str) -> None:
    with pytest.raises(torch_nn.ConversionError, match=message):
        torch_nn.loss_to_torch(loss)


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"write loss_from_torch\(nn.MSELoss\(\)\)"):
        torch_nn.loss_from_torch(nn.MSELoss)  # type: ignore[call-overload]  # what the test is about
