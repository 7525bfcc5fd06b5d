"""PyTorch's samples of its operators, as oracles of layers: in float64, outputs and gradients are autograd's.

A sample becomes a layer by the table in translations.py; what does not is listed below, with how often. The samples that an
operator must refuse, its counterpart refuses, or they are listed.
"""

import functools
from collections.abc import Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from fundl import Attend, Model, Shape, assert_trees_close, key, random, tree
from fundl.interop import torch_nn
from tests.oracles.database import Arguments, Call, Operator, arguments, errors_of, operators, run, samples_of
from tests.oracles.listing import Listed, NotRunError, compare_with_list, only, outcomes
from tests.oracles.translations import TRANSLATIONS, Translation, filled
from tests.test_layers import backward_any, forward_any

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that its samples do


def model_of(translation: Translation, a: Arguments) -> Model:
    made = translation.make(a)
    return torch_nn.from_torch(filled(made, a)) if isinstance(made, nn.Module) else made


def compare(operator: Operator, translation: Translation, call: Call) -> None:
    """Raise unless output and gradients of the layer are the operator's."""
    a = arguments(call, translation.names)
    model = model_of(translation, a)
    variables = {
        name: value.detach().clone().requires_grad_()
        for name, value in a.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not name.startswith("running")
    }
    output = run(operator, call, {id(a[name]): variable for name, variable in variables.items()})
    cotangent = random.normal(key(4), tuple(output.shape), dtype=output.dtype)
    expected = dict(zip(variables, torch.autograd.grad(output, list(variables.values()), cotangent), strict=True))
    inputs = [value.detach() for value in (a[name] for name in translation.inputs) if isinstance(value, Tensor)]
    y, grads = run_model(model, inputs, cotangent, translation)
    assert set(grads) - set(expected) <= {"weight"}  # of ones, where the operator has none
    assert_trees_close(
        (y, [grads[name] for name in expected]), (output.detach(), list(expected.values())), rtol=1e-8, atol=1e-8
    )


def run_model(
    model: Model, inputs: list[Tensor], grad: Tensor, translation: Translation
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The output of a model, and the gradients of inputs and parameters, by the operator's names."""
    if isinstance(model, Attend) and grad.ndim == 3:
        of_head, by_name = run_model(model, [x.unsqueeze(1) for x in inputs], grad.unsqueeze(1), translation)
        return of_head.squeeze(1), {name: part.squeeze(1) for name, part in by_name.items()}
    y, residuals = forward_any(model, inputs[0] if len(inputs) == 1 else tuple(inputs))
    assert isinstance(y, Tensor)
    grads, grad_x = backward_any(model, residuals, grad)
    of_inputs = dict(zip(translation.inputs, tree.leaves(grad_x), strict=True))
    found = {name: leaf for name, leaf in of_inputs.items() if leaf.is_floating_point()}
    if isinstance(grads, Attend):
        return y, found if grads.bias is None else {**found, "attn_mask": grads.bias}
    if tree.trainable_leaves(grads):
        module = torch_nn.to_torch(grads, Shape(*inputs[0].shape))
        found |= {name: parameter.detach() for name, parameter in module.named_parameters()}
    return y, found


LISTED: Final = [
    Listed(
        r"return_indices=True",
        {
            "nn.functional.adaptive_max_pool1d": 4,
            "nn.functional.adaptive_max_pool2d": 12,
            "nn.functional.adaptive_max_pool3d": 10,
            "nn.functional.max_pool1d": 432,
            "nn.functional.max_pool2d": 720,
            "nn.functional.max_pool3d": 288,
        },
        "a layer gives one tensor, and not where the maxima are from as well",
    ),
    Listed(
        r"divisor must be at least 1",
        {"nn.functional.avg_pool2d": 1, "nn.functional.avg_pool3d": 1},
        "a mean is divided by no number below 1",
    ),
    Listed(
        r"Hardshrink's bound must be a finite number of 0 or more",
        {"nn.functional.hardshrink": 1},
        "a bound below 0 shrinks nothing",
    ),
    Listed(
        r"max_val \(0\.0\) must be greater than min_val",
        {"nn.functional.hardtanh": 1},
        "a curve between two equal numbers is no curve: the module refuses it as well",
    ),
    Listed(
        r"the axis of the batch is joined with others, or parted",
        {"flatten": 4, "unflatten": 5},
        "Flatten and Reshape keep the axis of the batch",
    ),
    Listed(
        r"Pad's padding must be 0 or more",
        {
            "nn.functional.pad constant": 4,
            "nn.functional.pad reflect": 1,
            "nn.functional.pad replicate": 1,
            "nn.functional.pad replicate_negative": 6,
            "nn.functional.pad circular": 1,
        },
        "to leave elements out is not to pad",
    ),
    Listed(
        r"Upsample knows 'nearest' and 'linear' alone",
        {
            "nn.functional.interpolate bicubic": 24,
            "nn.functional.interpolate nearest-exact": 23,
        },
        "Upsample has two modes",
    ),
    Listed(
        r"max_norm=|scale_grad_by_freq=True|sparse=True",
        {"nn.functional.embedding": 5},
        "an embedding changes no weights, and its gradient is the derivative, and dense",
    ),
    Listed(
        r"eps is added to the variance, and must be",
        {"native_layer_norm": 4, "nn.functional.layer_norm": 1, "nn.functional.group_norm": 4, "nn.functional.rms_norm": 1},
        "an epsilon below 0 makes roots of numbers below 0",
    ),
    Listed(
        r"an input of one axis",
        {"nn.functional.batch_norm": 2, "nn.functional.batch_norm without_cudnn": 2},
        "a number for each sample has no channels",
    ),
    Listed(
        r"p=1\.0 drops all|draws from the global generator",
        {
            "nn.functional.dropout": 10,
            "nn.functional.dropout2d": 7,
            "nn.functional.dropout3d": 7,
            "nn.functional.alpha_dropout": 10,
            "nn.functional.rrelu": 3,
            "nn.functional.scaled_dot_product_attention": 12,
        },
        "a layer draws from its key, other numbers than the global generator's, and drops never all",
    ),
    Listed(
        r"heads that broadcast, or are of other sizes",
        {"nn.functional.scaled_dot_product_attention": 4},
        "queries, keys and values have one batch, and values the features of keys",
    ),
]

MANY: Final = {"nn.functional.max_pool1d", "nn.functional.max_pool2d", "nn.functional.max_pool3d"}
"""Operators with hundreds of samples, which differ little; test_common_modules.py has a few."""

every_operator = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in MANY else name for name in TRANSLATIONS]
)


def known(name: str) -> Operator:
    operator = operators().get(name)
    if operator is None:
        pytest.skip(f"this PyTorch has no samples of {name}")
    return operator


@every_operator
def test_operator(name: str) -> None:
    operator, translation = known(name), TRANSLATIONS[name]
    agreed, refused = outcomes(name, [functools.partial(compare, operator, translation, call) for call in samples_of(operator)])
    compare_with_list(refused, only(name, LISTED))
    assert agreed or refused


# --- What is refused ---------------------------------------------------------------------------------------------------

REFUSALS: Final = (ValueError, TypeError, IndexError, RuntimeError, AssertionError, NotRunError)
"""What an operator and its counterpart raise; some of them before the layer is made."""

ACCEPTED: Final[Mapping[str, int]] = {
    "nn.functional.conv1d": 1,
    "nn.functional.conv2d": 1,
    "nn.functional.conv3d": 1,
    "nn.functional.rrelu": 1,
}
"""Error samples that a layer computes: ATen's kernels for float64 convert a bias of any dtype; a mean has no order."""


@every_operator
def test_what_an_operator_refuses(name: str) -> None:
    operator, translation = known(name), TRANSLATIONS[name]
    accepted = 0
    for call in errors_of(operator):
        a = arguments(call, translation.names)
        inputs = tuple(a[place] for place in translation.inputs)
        try:
            forward_any(model_of(translation, a), inputs[0] if len(inputs) == 1 else inputs)
        except REFUSALS:
            continue
        accepted += 1
    assert accepted == ACCEPTED.get(name, 0)
