"""The networks that the benchmarks train, as fundl and as torch.nn have them, each with a batch and a loss.

convolutional   1 x 28 x 28 images; two convolutions of 3 x 3 with 32 and 64 channels, each with ReLU and pooling; 128; 10
lstm            50 steps of 64 features; an LSTM of 128; 10 classes from the mean over the steps
transformer     128 tokens of 64 kinds; 4 pre-norm blocks, 128 features, 4 heads, causal; the next token
"""

from collections.abc import Callable
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

import fundl
from fundl import Loss, Model

CLASSES: Final = 10
TOKENS: Final = 64
FEATURES: Final = 128
HEADS: Final = 4
BLOCKS: Final = 4


@attrs.frozen(eq=False)
class Network:
    """A network twice, and what it learns.

    Args:
        model: as fundl has it, without values.
        module: makes it as torch.nn has it, with values of its own.
        batch: an input and a target.
        loss: of fundl, for a prediction and the target.
        torch_loss: the same for torch.nn.
    """

    model: Model
    module: Callable[[], nn.Module]
    batch: tuple[Tensor, Tensor]
    loss: Loss[Tensor, Tensor]
    torch_loss: Callable[[Tensor, Tensor], Tensor]


# --- Convolutional -------------------------------------------------------------------------------------------------------


def convolutional(batch_size: int = 64) -> Network:
    """The convolutional network."""
    model = fundl.compose(
        fundl.conv2d(1, 32, 3, padding=1),
        fundl.ReLU(),
        fundl.MaxPool2d(2),
        fundl.conv2d(32, 64, 3, padding=1),
        fundl.ReLU(),
        fundl.MaxPool2d(2),
        fundl.Flatten(),
        fundl.linear(64 * 7 * 7, 128),
        fundl.ReLU(),
        fundl.linear(128, CLASSES),
    )
    batch = torch.randn(batch_size, 1, 28, 28), torch.randint(CLASSES, (batch_size,))
    return Network(model, _convolutional_module, batch, fundl.cross_entropy, functional.cross_entropy)


def _convolutional_module() -> nn.Module:
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


# --- LSTM ----------------------------------------------------------------------------------------------------------------


def lstm(batch_size: int = 32) -> Network:
    """The recurrent network."""
    model = fundl.compose(fundl.lstm(64, 128), fundl.MeanOfPositions(), fundl.linear(128, CLASSES))
    batch = torch.randn(batch_size, 50, 64), torch.randint(CLASSES, (batch_size,))
    return Network(model, _LSTM, batch, fundl.cross_entropy, functional.cross_entropy)


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


# --- Transformer ---------------------------------------------------------------------------------------------------------


def transformer(batch_size: int = 8, length: int = 128) -> Network:
    """The transformer."""
    blocks = fundl.encoder(BLOCKS, fundl.transformer_block(FEATURES, HEADS, causal=True), fundl.layer_norm(FEATURES))
    model = fundl.compose(fundl.embedding(TOKENS, FEATURES), *blocks, fundl.linear(FEATURES, TOKENS))
    batch = torch.randint(TOKENS, (batch_size, length)), torch.randint(TOKENS, (batch_size, length))
    return Network(model, _Transformer, batch, _each_position, _torch_each_position)


def _each_position(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = fundl.cross_entropy(prediction.flatten(0, 1), target.flatten())
    return value, grad.reshape(prediction.shape)


def _torch_each_position(prediction: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(prediction.flatten(0, 1), target.flatten())


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, FEATURES)
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(FEATURES)
        self.linear = nn.Linear(FEATURES, TOKENS)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(self.blocks(self.embedding(tokens))))
        return scores


class _Block(nn.Module):
    """A pre-norm block, by the fused attention: torch.nn.TransformerEncoderLayer is slower."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(FEATURES)
        self.projection = nn.Linear(FEATURES, 3 * FEATURES)
        self.output = nn.Linear(FEATURES, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.feed_forward = nn.Sequential(nn.Linear(FEATURES, 4 * FEATURES), nn.GELU(), nn.Linear(4 * FEATURES, FEATURES))

    @override
    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection(self.attention_norm(x))
        parts = projected.reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, features)
        queries, keys, values = parts.unbind()
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        attended: Tensor = x + self.output(mixed.transpose(1, 2).flatten(2))
        output: Tensor = attended + self.feed_forward(self.norm(attended))
        return output


NETWORKS: Final[dict[str, Callable[[], Network]]] = {
    "convolutional": convolutional,
    "lstm": lstm,
    "transformer": transformer,
}
