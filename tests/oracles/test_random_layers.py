"""Layers with random options, sizes, layouts and dtypes, against their counterparts in torch.nn in float64.

A failure names the case's seed: `check_random(name, seed)` runs it again.
"""

from collections.abc import Sequence
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from fundl import Decoder, DecoderBlock, Frozen, GRUCell, LSTMCell, Repeat, RNNCell, Shape, tree
from fundl.interop import torch_nn
from tests.oracles.drawn import DRAWN, LAYOUTS, Draw
from tests.test_layers import backward_any, forward_any
from tests.test_torch_nn import TO

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of windows of even sizes, and of nothing in a batch

# In half precision about 16 roundings: queries and keys of attention are rounded, and scores of 50 differ by hundredths then.
TOLERANCES: Final = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}

every_layer = pytest.mark.parametrize("name", DRAWN)


def run_module(module: nn.Module, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The first output of a module, and the gradients of its parameters, and with respect to its inputs.

    All is in float64 and contiguous: of another layout, nn.InstanceNorm without a bias gives a wrong gradient of its weight.
    """
    variables = [x.detach().double().contiguous().requires_grad_() if x.is_floating_point() else x for x in inputs]
    given = [variables[0], variables[-1], variables[-1]] if isinstance(module, nn.MultiheadAttention) else variables
    output: object = module.double()(*given)
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    parameters = list(module.parameters())
    leaves = [*parameters, *(x for x in variables if x.requires_grad)]
    if not leaves:
        return first, [], []
    grads = torch.autograd.grad(first, leaves, grad.double().contiguous(), materialize_grads=True)
    return first.detach(), list(grads[: len(parameters)]), list(grads[len(parameters) :])


def check_random(name: str, seed: int) -> None:
    """Raise unless a random case of a layer gives what its module gives, as nearly as its dtype allows."""
    draw = Draw.of(f"{name} {seed}")
    made, drawn = DRAWN[name](draw)
    dtype = torch.float64 if isinstance(made, tuple) else draw.one_of(torch.float64, *TOLERANCES)

    def laid(x: Tensor) -> Tensor:
        return draw.one_of(*LAYOUTS)(x.to(dtype)) if x.is_floating_point() else x

    model = tree.map(laid, made if all(not leaf.is_meta for leaf in tree.leaves(made)) else draw.with_values(made))
    inputs = [laid(x) for x in (drawn if isinstance(drawn, tuple) else (drawn,))]
    y, residuals = forward_any(model, inputs[0] if len(inputs) == 1 else tuple(inputs))
    assert isinstance(y, Tensor)
    grad = laid(draw.normal(*y.shape))
    grads, grad_x = backward_any(model, residuals, grad)
    shape = Shape(*inputs[0].shape)
    expected = run_module(torch_nn.to_torch(model, shape), inputs, grad)
    of_parameters = [parameter.detach() for parameter in torch_nn.to_torch(grads, shape).parameters()]
    of_inputs = [leaf for leaf in tree.leaves(grad_x) if leaf.is_floating_point()]
    compare((y, of_parameters, of_inputs), expected, TOLERANCES[dtype])


def compare(
    ours: tuple[Tensor, list[Tensor], list[Tensor]], theirs: tuple[Tensor, list[Tensor], list[Tensor]], tolerance: float
) -> None:
    """Raise unless all tensors are near those in float64, relative to the largest number of the output, or of the gradients."""
    pairs = [
        ("output", [ours[0]], [theirs[0]]),
        ("gradient", [*ours[1], *ours[2]], [*theirs[1], *theirs[2]]),
    ]
    for what, own, other in pairs:
        largest = max([1.0, *(float(b.abs().max()) for b in other if b.numel())])
        for place, (a, b) in enumerate(zip(own, other, strict=True)):
            assert a.shape == b.shape, f"{what} {place} has the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            worst = float((a.double() - b).abs().max()) if b.numel() else 0.0
            assert worst <= tolerance * largest, f"{what} {place} is off by {worst}, where the largest number is {largest}"


@every_layer
def test_random_cases(name: str) -> None:
    for seed in range(12):
        check_random(name, seed)


@pytest.mark.slow
@every_layer
def test_many_random_cases(name: str) -> None:
    for seed in range(12, 1000):
        check_random(name, seed)


def test_every_counterpart_is_drawn() -> None:
    drawn: set[type[object]] = set()
    for name, make in DRAWN.items():
        for seed in range(200):
            model, _ = make(Draw.of(f"{name} {seed}"))
            drawn |= {type(part) for part in (model if isinstance(model, tuple) else (model,))}
    of_parts = {Frozen, Repeat, DecoderBlock, Decoder}  # which hold what is drawn
    cells = {RNNCell, GRUCell, LSTMCell}  # steps of what is drawn, from a state: tests/test_cells.py
    assert set(TO) - of_parts - cells <= drawn
