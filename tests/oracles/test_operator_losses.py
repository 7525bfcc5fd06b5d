"""PyTorch's samples of its operators, as oracles of losses: in float64, values and gradients are autograd's."""

import functools
from collections.abc import Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from fundl import assert_trees_close
from tests.oracles.database import Arguments, Call, Operator, arguments, errors_of, operators, run, samples_of
from tests.oracles.listing import Listed, NotRunError, compare_with_list, only, outcomes
from tests.test_common_modules import loss_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that its samples do

LOSSES: Final[Mapping[str, type[nn.Module]]] = {
    "nn.functional.mse_loss": nn.MSELoss,
    "nn.functional.l1_loss": nn.L1Loss,
    "nn.functional.huber_loss": nn.HuberLoss,
    "nn.functional.smooth_l1_loss": nn.SmoothL1Loss,
    "nn.functional.kl_div": nn.KLDivLoss,
    "nn.functional.cross_entropy": nn.CrossEntropyLoss,
    "nn.functional.nll_loss": nn.NLLLoss,
    "nn.functional.binary_cross_entropy": nn.BCELoss,
    "nn.functional.binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def evaluate(name: str, a: Arguments) -> tuple[Tensor, Tensor]:
    """Value and gradient of the counterpart of a loss; a sample without the axis of the batch gets one."""
    options = {key: value for key, value in a.items() if key not in {"input", "target"}}
    if isinstance(options.get("weight"), Tensor) and name in ELEMENTWISE:
        raise NotRunError("a weight of each element")
    x, t = a["input"], a["target"]
    assert isinstance(x, Tensor)
    assert isinstance(t, Tensor)
    loss = loss_of(LOSSES[name](**options))
    if name in CLASSWISE and x.ndim == 1:
        value, grad = loss(x.unsqueeze(0), t.unsqueeze(0))
        return value, grad.squeeze(0)
    return loss(x, t)


CLASSWISE: Final = frozenset({"nn.functional.cross_entropy", "nn.functional.nll_loss"})
ELEMENTWISE: Final = frozenset(LOSSES) - CLASSWISE


def compare(name: str, operator: Operator, call: Call) -> None:
    """Raise unless value and gradient are the operator's."""
    a = arguments(call, ("input", "target"))
    x, weight = a["input"], a.get("weight")
    assert isinstance(x, Tensor)
    variable = x.detach().clone().requires_grad_()
    replaced = {id(x): variable}
    if isinstance(weight, Tensor):  # fundl refuses weights below 0
        a["weight"] = replaced[id(weight)] = weight.detach().abs()
    value, grad = evaluate(name, a)
    expected = run(operator, call, replaced)
    (expected_grad,) = torch.autograd.grad(expected, [variable])
    assert_trees_close((value, grad), (expected.detach(), expected_grad), rtol=1e-8, atol=1e-8)


LISTED: Final = [
    Listed(
        r"reduction='none'",
        {
            "nn.functional.mse_loss": 1,
            "nn.functional.l1_loss": 1,
            "nn.functional.huber_loss": 3,
            "nn.functional.smooth_l1_loss": 1,
            "nn.functional.kl_div": 4,
            "nn.functional.cross_entropy": 4,
            "nn.functional.nll_loss": 21,
            "nn.functional.binary_cross_entropy": 1,
            "nn.functional.binary_cross_entropy_with_logits": 2,
        },
        "a loss' value is a number: there is no reduction to none",
    ),
    Listed(
        r"a weight of each element",
        {"nn.functional.binary_cross_entropy": 3, "nn.functional.binary_cross_entropy_with_logits": 15},
        "binary losses weigh yes against no, and no elements",
    ),
]


@every_loss
def test_loss(name: str) -> None:
    operator = operators()[name]
    agreed, refused = outcomes(name, [functools.partial(compare, name, operator, call) for call in samples_of(operator)])
    compare_with_list(refused, only(name, LISTED))
    assert agreed


@every_loss
def test_what_a_loss_refuses(name: str) -> None:
    for call in errors_of(operators()[name]):
        with pytest.raises((ValueError, TypeError, NotRunError)):
            evaluate(name, arguments(call, ("input", "target")))
