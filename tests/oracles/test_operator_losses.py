"""PyTorch's samples of its operators, as oracles of losses: in float64, values and gradients are autograd's."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn

from fundl import assert_trees_close
from tests.oracles.database import Arguments, Call, Operator, arguments, errors_of, operators, run, samples_of
from tests.oracles.listing import Listed, NotRunError, compare_with_list, is_counted, only, outcomes
from tests.oracles.losses import Found, evaluate, evaluate_linear, given_to
from tests.oracles.translations import TRANSLATIONS
from tests.oracles.untranslated import UNTRANSLATED

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that its samples do

ONE: Final = ("input", "target")
TWO: Final = ("input1", "input2", "target")
THREE: Final = ("anchor", "positive", "negative")


@attrs.frozen
class OfLoss:
    """The module that an operator stands for, and the names of what that is called with."""

    module: type[nn.Module]
    inputs: Sequence[str] = ONE
    tolerance: float = 1e-8


NEAR: Final = 1e-5
"""torch adds 1e-6 to each difference whose length it takes."""
LOSSES: Final[Mapping[str, OfLoss]] = {
    "nn.functional.mse_loss": OfLoss(nn.MSELoss),
    "nn.functional.l1_loss": OfLoss(nn.L1Loss),
    "nn.functional.huber_loss": OfLoss(nn.HuberLoss),
    "nn.functional.smooth_l1_loss": OfLoss(nn.SmoothL1Loss),
    "nn.functional.kl_div": OfLoss(nn.KLDivLoss),
    "nn.functional.cross_entropy": OfLoss(nn.CrossEntropyLoss),
    "nn.functional.nll_loss": OfLoss(nn.NLLLoss),
    "nn.functional.binary_cross_entropy": OfLoss(nn.BCELoss),
    "nn.functional.binary_cross_entropy_with_logits": OfLoss(nn.BCEWithLogitsLoss),
    "nn.functional.multilabel_soft_margin_loss": OfLoss(nn.MultiLabelSoftMarginLoss),
    "nn.functional.poisson_nll_loss": OfLoss(nn.PoissonNLLLoss),
    "nn.functional.gaussian_nll_loss": OfLoss(nn.GaussianNLLLoss, (*ONE, "var")),
    "nn.functional.soft_margin_loss": OfLoss(nn.SoftMarginLoss),
    "nn.functional.hinge_embedding_loss": OfLoss(nn.HingeEmbeddingLoss),
    "nn.functional.margin_ranking_loss": OfLoss(nn.MarginRankingLoss, TWO),
    "nn.functional.cosine_embedding_loss": OfLoss(nn.CosineEmbeddingLoss, TWO),
    "nn.functional.multi_margin_loss": OfLoss(nn.MultiMarginLoss),
    "nn.functional.multilabel_margin_loss": OfLoss(nn.MultiLabelMarginLoss),
    "nn.functional.triplet_margin_loss": OfLoss(nn.TripletMarginLoss, THREE, NEAR),
    "nn.functional.triplet_margin_with_distance_loss": OfLoss(nn.TripletMarginLoss, THREE, NEAR),
    "nn.functional.ctc_loss": OfLoss(nn.CTCLoss, ("log_probs", "targets", "input_lengths", "target_lengths")),
}
LINEAR: Final = (
    "nn.functional.linear_cross_entropy",
    "nn.functional.linear_cross_entropy chunked",
    "nn.functional.linear_cross_entropy chunked_none",
)
LABELS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "nn.functional.soft_margin_loss": lambda target: torch.where(target > 0, 1.0, -1.0).to(target.dtype),
    "nn.functional.hinge_embedding_loss": lambda target: torch.where(target > 0, 1.0, -1.0).to(target.dtype),
    "nn.functional.margin_ranking_loss": lambda target: torch.where(target > 0, 1.0, -1.0).to(target.dtype),
    "nn.functional.multilabel_soft_margin_loss": torch.sigmoid,
}
"""What is made of targets that hold any numbers, which fundl refuses: labels, or probabilities."""
every_loss = pytest.mark.parametrize("name", [*LOSSES, *LINEAR])


def known(name: str) -> Operator:
    operator = operators().get(name)
    if operator is None:
        pytest.skip(f"this PyTorch has no samples of {name}")
    return operator


def evaluated(name: str, a: Arguments) -> Found:
    """Value and gradients of the counterpart of a call."""
    if name in LINEAR:
        inputs = {key: a[key] for key in ("input", "linear_weight", "target", "linear_bias") if key in a}
        return evaluate_linear(inputs, {key: value for key, value in a.items() if key not in inputs})
    entry = LOSSES[name]
    return evaluate(module_of(entry, a), [a[key] for key in entry.inputs])


def module_of(entry: OfLoss, a: Arguments) -> nn.Module:
    options = {key: value for key, value in a.items() if key not in entry.inputs}
    distance = options.pop("distance_function", None)
    if distance is not None and not isinstance(distance, nn.PairwiseDistance):
        raise NotRunError("a distance of one's own")
    return entry.module(**options)


def differentiated(name: str, a: Arguments) -> list[str]:
    """The names of what a model gives."""
    if name in LINEAR:
        return [key for key in ("input", "linear_weight", "linear_bias") if a.get(key) is not None]
    entry = LOSSES[name]
    return [entry.inputs[place] for place in given_to(module_of(entry, a))]


def names_of(operator: Operator) -> Sequence[str]:
    return next((entry.inputs for name, entry in LOSSES.items() if name == operator.name), ("input", "linear_weight", "target"))


def compare(name: str, operator: Operator, call: Call) -> None:
    """Raise unless value and gradients are the operator's."""
    a = arguments(call, names_of(operator))
    weight = a.get("weight")
    replaced: dict[int, Tensor] = {}
    if isinstance(weight, Tensor):  # fundl refuses weights below 0
        a["weight"] = replaced[id(weight)] = weight.detach().abs()
    target = a.get("target")
    if isinstance(target, Tensor) and name in LABELS:
        a["target"] = replaced[id(target)] = LABELS[name](target.detach())
    variables = []
    for key in differentiated(name, a):
        x = a[key]
        assert isinstance(x, Tensor)
        variables.append(x.detach().clone().requires_grad_())
        replaced[id(x)] = variables[-1]
        a[key] = x.detach()
    expected = run(operator, call, replaced)
    expected_grads = torch.autograd.grad(expected.sum(), variables)
    value, grads = evaluated(name, a)
    tolerance = LOSSES[name].tolerance if name in LOSSES else 1e-8
    found = value.reshape(expected.shape) if value.numel() == expected.numel() else value
    assert_trees_close((found, grads), (expected.detach(), list(expected_grads)), rtol=tolerance, atol=tolerance)


LISTED: Final = [
    Listed(
        r"a label that is named twice",
        {"nn.functional.multilabel_margin_loss": 5},
        "labels of yes and no count once, and indices as often as they are named",
    ),
]


@every_loss
def test_loss(name: str) -> None:
    operator = known(name)
    runs: list[Callable[[], None]] = [functools.partial(compare, name, operator, call) for call in samples_of(operator)]
    agreed, refused = outcomes(name, runs)
    compare_with_list(refused, only(name, LISTED))
    assert agreed


def test_every_operator_has_a_counterpart_or_a_reason() -> None:
    """All of torch.nn.functional that PyTorch has samples of; another PyTorch may have more."""
    known_ones = {
        *TRANSLATIONS,
        *LOSSES,
        *LINEAR,
        *(f"nn.functional.{name}" for names in UNTRANSLATED.values() for name in names),
    }
    found = {name for name in operators() if name.startswith("nn.functional.")}
    if is_counted():
        assert found <= known_ones
    assert not {*TRANSLATIONS, *LOSSES} & {f"nn.functional.{name}" for names in UNTRANSLATED.values() for name in names}


REFUSALS: Final = (ValueError, TypeError, IndexError, RuntimeError, AssertionError, NotRunError)


ACCEPTED: Final[Mapping[str, int]] = dict.fromkeys(LINEAR, 1)
"""Error samples that are computed: one sample of several positions, with probabilities."""


@every_loss
def test_what_a_loss_refuses(name: str) -> None:
    operator, accepted = known(name), 0
    for call in errors_of(operator):
        try:
            evaluated(name, arguments(call, names_of(operator)))
        except REFUSALS:
            continue
        accepted += 1
    assert accepted == ACCEPTED.get(name, 0)
