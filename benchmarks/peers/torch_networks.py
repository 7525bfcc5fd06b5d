"""The networks of the cases as torch.nn has them."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from benchmarks.cases import CLASSES, DROPPED, FEATURES, HEADS, MOMENTUM, TOKENS, WEIGHT_DECAY, Case, Floats

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def module_of(case: Case) -> nn.Module:
    """The network with the first parameters."""
    module = _network(case)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), case.parameters(), strict=True):
            parameter.copy_(torch.tensor(value))
    return module


def batches(case: Case) -> tuple[Tensor, Tensor]:
    """The inputs and the targets of the steps of a call, along a first axis."""
    x, target = case.batches()
    return torch.tensor(x), torch.tensor(target)


def loss_of(case: Case) -> Loss:
    """The loss."""
    if case.network == "transformer":
        return _each_position
    return functional.mse_loss if case.mean_squared else functional.cross_entropy


def optimizer_of(case: Case, parameters: Iterable[Tensor], setting: str) -> torch.optim.Optimizer:
    """The optimizer with one of its settings: plain, foreach, fused."""
    foreach, fused = setting == "foreach", setting == "fused"
    match case.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=case.rate, foreach=foreach, fused=fused)
        case "momentum":
            return torch.optim.SGD(parameters, lr=case.rate, momentum=MOMENTUM, foreach=foreach, fused=fused)
        case "adam":
            return torch.optim.Adam(parameters, lr=case.rate, foreach=foreach, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=case.rate, weight_decay=WEIGHT_DECAY, foreach=foreach, fused=fused)


def parameters_of(leaves: Iterable[Floats], gradients: Iterable[Floats]) -> list[nn.Parameter]:
    """Parameters of no module, with their gradients."""
    parameters = [nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def _each_position(prediction: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(prediction.flatten(0, 1), target.flatten())


def _network(case: Case) -> nn.Module:
    match case.network:
        case "convolutional":
            return _convolutional()
        case "lstm":
            return _LSTM()
        case "transformer":
            return Transformer(case.depth, FEATURES, HEADS, TOKENS)
        case _:
            dropout = [nn.Dropout(DROPPED)] if case.network == "dropout" else []
            layers: list[nn.Module] = []
            for sizes in pairwise(case.sizes):
                layers += [nn.Linear(*sizes), nn.ReLU(), *dropout]
            return nn.Sequential(*layers[: -1 - len(dropout)])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.linear = nn.Linear(128, CLASSES)

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.lstm(x)[0]
        scores: Tensor = self.linear(hidden.mean(1))
        return scores


class Transformer(nn.Module):
    """Pre-norm blocks between an embedding and logits."""

    def __init__(self, depth: int, features: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, features)
        self.blocks = nn.Sequential(*(_Block(features, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, tokens)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(self.blocks(self.embedding(tokens))))
        return scores


class _Block(nn.Module):
    """A pre-norm block, by the fused attention: torch.nn.TransformerEncoderLayer is slower."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(features)
        self.projection = nn.Linear(features, 3 * features)
        self.output = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)
        self.feed_forward = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))

    @override
    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection(self.attention_norm(x))
        parts = projected.reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, features)
        queries, keys, values = parts.unbind()
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        attended: Tensor = x + self.output(mixed.transpose(1, 2).flatten(2))
        output: Tensor = attended + self.feed_forward(self.norm(attended))
        return output
