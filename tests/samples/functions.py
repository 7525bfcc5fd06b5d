"""Sample layers: those that are made of functions, which torch differentiates."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fundl import FunctionLayer, layer_from_function, saved_as, tree
from fundl.interop import torch_nn
from tests.samples.table import normal, sample

Params = dict[str, Tensor]


@saved_as("tests.bumps")
def bumps(params: Params, x: Tensor) -> Tensor:
    """(B, 3) to (B, 4)."""
    distances = x.unsqueeze(1) - params["places"]
    return params["heights"] * torch.exp(-(distances * distances).sum(-1))


@saved_as("tests.crossed")
def crossed(_: None, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A pair to a pair, without parameters."""
    first, second = x
    return first * second.sin(), first + second


@saved_as("tests.looked_up")
def looked_up(params: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) tokens to (B, T, 3)."""
    chosen = tokens.unsqueeze(-1) == torch.arange(len(params), device=tokens.device)
    return torch.tanh(chosen.to(params.dtype) @ params)


class Network(nn.Module):
    """(B, 3, T) to (B, 2): with statistics, a parameter that is not trained, and parts that do something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.GELU()
        self.last = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]), requires_grad=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(self.convolution(x))
        h = h + F.dropout(self.act(h), 0.5, self.training)
        y: Tensor = self.last(h.mean(2))
        return self.scale * y


def network() -> FunctionLayer[torch_nn.ModuleTensors, Tensor, Tensor]:
    """The layer of a module, with random values."""
    layer = torch_nn.as_layer(Network().double())
    filled = tree.with_trainable_leaves(layer, [normal(*leaf.shape) for leaf in tree.trainable_leaves(layer)])
    return tree.at(filled, lambda layer: layer.params.buffers["norm.running_mean"]).set(normal(4))


def by_network(layer: FunctionLayer[torch_nn.ModuleTensors, Tensor, Tensor], x: Tensor) -> Tensor:
    p, fixed = layer.params.parameters, layer.params.buffers
    h = F.conv1d(x, p["convolution.weight"], p["convolution.bias"], padding=1)
    statistics = fixed["norm.running_mean"], fixed["norm.running_var"]
    h = (h - statistics[0][:, None]) / (statistics[1][:, None] + 1e-5).sqrt()
    h = h * p["norm.weight"][:, None] + p["norm.bias"][:, None]
    h = h + F.gelu(h)
    return F.linear(h.mean(2), p["last.weight"], p["last.bias"]) * fixed["scale"]


TOKENS: Final = torch.tensor([[1, 0], [2, 2], [4, 1]])

SAMPLES: Final = (
    sample(
        "function",
        layer_from_function(bumps, {"places": normal(4, 3), "heights": normal(4)}),
        normal(5, 3),
        lambda p, x: bumps(p.params, x),
    ),
    sample(
        "function of a pair",
        layer_from_function(crossed, None),
        (normal(5, 3), normal(5, 3).cos()),
        lambda _, x: crossed(None, x),
    ),
    sample("function of tokens", layer_from_function(looked_up, normal(5, 3)), TOKENS, lambda p, x: looked_up(p.params, x)),
    sample("module", network(), normal(5, 3, 4), by_network),
)
