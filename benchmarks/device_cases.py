"""What `benchmarks.on_device` trains, the same for every side: networks, first values and batches.

blocks-bfloat16      12 blocks of 768 features with 12 heads, causal, between an embedding of 50,304 tokens and logits; a step
                     has 8 x 1,024 tokens; 163 million parameters
mlp-float32          784-2048-1664-10 with ReLU, 256 rows; products in float32, without TF32; 5.0 million parameters
mlp-bfloat16         the same in mixed precision
large-mlp-float32    the same with 16,384 rows
large-mlp-bfloat16   the same in mixed precision

In mixed precision, parameters, gradients and AdamW's moments are in float32; forward and backward run on copies of all
parameters in bfloat16, made anew in each step, and give logits in bfloat16, of which the loss is found in float32. Each side
does so.
"""

from itertools import pairwise
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from benchmarks.peers.torch_networks import Transformer
from fundl import (
    Model,
    ReLU,
    compose,
    embedding,
    initialize,
    key,
    layer_norm,
    linear,
    mixed_precision,
    random,
    transformer_block,
    tree,
)

RATE: Final = 1e-3
DECAY: Final = 0.01


@attrs.frozen
class Case:
    """A network and its batch; of linear layers, if it has sizes, and else of a transformer's blocks.

    Args:
        compute: the dtype of forward and backward.
        rows: of a batch.
        sizes: of linear layers, with ReLU between them.
        blocks: of a transformer, how many.
        features: of a position.
        heads: of attention.
        tokens: how many kinds there are.
        length: of a sequence.
    """

    compute: torch.dtype
    rows: int
    sizes: tuple[int, ...] = ()
    blocks: int = 0
    features: int = 0
    heads: int = 0
    tokens: int = 0
    length: int = 0

    @property
    def is_mixed(self) -> bool:
        """Whether forward and backward run in another dtype than that of the parameters."""
        return self.compute != torch.float32

    @property
    def dtype(self) -> str:
        """The name of the dtype of forward and backward."""
        return str(self.compute).removeprefix("torch.")

    def model(self) -> Model:
        """The network with its first values, on the CPU."""
        layers: list[Model] = []
        if self.sizes:
            for inputs, outputs in pairwise(self.sizes):
                layers += [linear(inputs, outputs), ReLU()]
            del layers[-1]
        else:
            blocks = [transformer_block(self.features, self.heads, causal=True) for _ in range(self.blocks)]
            ends = layer_norm(self.features), linear(self.features, self.tokens)
            layers += [embedding(self.tokens, self.features), *blocks, *ends]
        mixed = mixed_precision(*layers, compute=self.compute, output=self.compute) if self.is_mixed else compose(*layers)
        return initialize(key(0), mixed)

    def values(self) -> list[Tensor]:
        """The first values of the parameters, in the order of torch.nn's."""
        return tree.trainable_leaves(self.model())

    def module(self) -> nn.Module:
        """The network as torch.nn has it, with the same values."""
        module = self._dense() if self.sizes else Transformer(self.blocks, self.features, self.heads, self.tokens)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), self.values(), strict=True):
                parameter.copy_(value)
        return module

    def _dense(self) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(self.sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, on the CPU."""
        if self.sizes:
            return random.normal(key(1), (self.rows, self.sizes[0])), self._integers(2, self.sizes[-1], self.rows)
        return self._integers(1, self.tokens, self.rows, self.length), self._integers(2, self.tokens, self.rows, self.length)

    @staticmethod
    def _integers(seed: int, high: int, *shape: int) -> Tensor:
        return random.randint(key(seed), shape, low=0, high=high)


_MLP: Final = (784, 2048, 1664, 10)
CASES: Final = {
    "blocks-bfloat16": Case(torch.bfloat16, 8, blocks=12, features=768, heads=12, tokens=50304, length=1024),
    "mlp-float32": Case(torch.float32, 256, sizes=_MLP),
    "mlp-bfloat16": Case(torch.bfloat16, 256, sizes=_MLP),
    "large-mlp-float32": Case(torch.float32, 16384, sizes=_MLP),
    "large-mlp-bfloat16": Case(torch.bfloat16, 16384, sizes=_MLP),
    "small-blocks-float32": Case(torch.float32, 2, blocks=2, features=32, heads=2, tokens=64, length=16),
    "small-blocks-bfloat16": Case(torch.bfloat16, 2, blocks=2, features=32, heads=2, tokens=64, length=16),
    "small-mlp-float32": Case(torch.float32, 16, sizes=(8, 16, 4)),
}
"""The small ones only show that all runs."""
NAMES: Final = [name for name in CASES if not name.startswith("small-")]
