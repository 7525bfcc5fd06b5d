"""GPT-2 as a model of fundl, and where its tensors are in Hugging Face's files."""

import math
from typing import Self, TypeAlias, final

import attrs
import torch

from fundl.initializers import normal, zeros
from fundl.interop._layouts import Names, Piece
from fundl.interop.hugging_face._config import Config, activation_of
from fundl.layer import AnyLayer
from fundl.layers._refusals import require_at_least_one
from fundl.layers.attention import self_attention
from fundl.layers.dropout import Dropout
from fundl.layers.embedding import embedding
from fundl.layers.linear import Linear, linear
from fundl.layers.normalization import LayerNorm, layer_norm
from fundl.layers.positional import LearnedPositions, learned_positions
from fundl.layers.structure import residual
from fundl.layers.tied import Tied, tied
from fundl.layers.transformer import AttentionPart, NetworkPart

Block: TypeAlias = tuple[
    AttentionPart[LayerNorm[int], int], NetworkPart[LayerNorm[int], tuple[Linear[int, int], AnyLayer, Linear[int, int]]]
]
GPT2Model: TypeAlias = Tied[int, LearnedPositions[int], Dropout, tuple[Block, ...], LayerNorm[int]]
"""Embedding, positions, dropout, blocks, norm; the embedding tells the tokens, too."""


@final
@attrs.frozen
class GPT2:
    """The sizes of a GPT-2; the defaults are those of the smallest, of 124 million parameters.

    Args:
        vocabulary: V, how many tokens there are.
        positions: how many a sequence has at most.
        features: F, of each position; a multiple of the heads.
        blocks: how many.
        heads: of each attention.
        hidden: features inside of each network; None for 4 F.
        activation: of the networks, by its name in a config.json; "gelu_new" is ``GELU("tanh")``.
        eps: of the norms.

    Source:
        Radford, Wu, Child, Luan, Amodei and Sutskever, Language models are unsupervised multitask learners, 2019.

    >>> from fundl import tree
    >>> from fundl.interop.hugging_face import GPT2
    >>> tree.count(GPT2().model())
    124439808
    """

    vocabulary: int = 50_257
    positions: int = 1024
    features: int = 768
    blocks: int = 12
    heads: int = 12
    hidden: int | None = None
    activation: str = "gelu_new"
    eps: float = 1e-5

    def __attrs_post_init__(self) -> None:
        require_at_least_one(vocabulary=self.vocabulary, positions=self.positions, blocks=self.blocks)

    @classmethod
    def of_config(cls, config: Config) -> Self:
        """Those of a config.json."""
        config.require("tie_word_embeddings", True, default=True)  # the value that is known
        config.require("scale_attn_weights", True, default=True)
        config.require("scale_attn_by_inverse_layer_idx", False, default=False)
        config.require("add_cross_attention", False, default=False)
        return cls(
            config.get("vocab_size", int),
            config.get("n_positions", int),
            config.get("n_embd", int),
            config.get("n_layer", int),
            config.get("n_head", int),
            config.get("n_inner", int, None),
            config.get("activation_function", str, "gelu_new"),
            config.get("layer_norm_epsilon", float, 1e-5),
        )

    def config(self) -> dict[str, object]:
        """What config.json has to say of it."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": self.vocabulary,
            "n_positions": self.positions,
            "n_embd": self.features,
            "n_layer": self.blocks,
            "n_head": self.heads,
            "n_inner": self.hidden,
            "activation_function": self.activation,
            "layer_norm_epsilon": self.eps,
            "tie_word_embeddings": True,
        }

    def model(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> GPT2Model:
        """The model, without values: give it some with `initialize`, or `load` them.

        Weights are drawn from N(0, 0.02^2), those of the last layer of each part of a block 1 / sqrt(2 blocks) times as large.

        Args:
            dropout: of embeddings, attention, and what each part of a block gives.
            dtype: of the parameters.
        """
        f, wide, narrow = self.features, normal(0.02), normal(0.02 / math.sqrt(2 * self.blocks))
        norm = layer_norm(f, eps=self.eps, dtype=dtype)
        attention = self_attention(
            f,
            self.heads,
            causal=True,
            dropout=dropout,
            weight_init=wide,
            output_weight_init=narrow,
            dtype=dtype,
        )
        network = (
            linear(f, self._hidden, weight_init=wide, bias_init=zeros(), dtype=dtype),
            activation_of(self.activation),
            linear(self._hidden, f, weight_init=narrow, bias_init=zeros(), dtype=dtype),
        )
        block = residual(norm, attention, Dropout(dropout)), residual(norm, network, Dropout(dropout))
        return tied(
            embedding(self.vocabulary, f, weight_init=wide, dtype=dtype),
            learned_positions(self.positions, f, weight_init=wide, dtype=dtype),
            Dropout(dropout),
            (block,) * self.blocks,
            norm,
        )

    def names(self) -> Names:
        """Where the tensors of the model are in a file; `load` takes them with and without the first word, too."""
        f, inner = self.features, self._hidden
        names = {
            ".embedding.weight": [Piece("transformer.wte.weight", self.vocabulary)],
            ".layers[0].weight": [Piece("transformer.wpe.weight", self.positions)],
            **_with_bias(".layers[3]", "transformer.ln_f", f),
        }
        for number in range(self.blocks):
            here, there = f".layers[2][{number}]", f"transformer.h.{number}"
            names |= _with_bias(f"{here}[0].layers[0]", f"{there}.ln_1", f)
            names |= _with_bias(f"{here}[0].layers[1]", f"{there}.attn.c_attn", 3 * f, is_transposed=True)
            names |= _with_bias(f"{here}[0].layers[1]", f"{there}.attn.c_proj", f, "output_", is_transposed=True)
            names |= _with_bias(f"{here}[1].layers[0]", f"{there}.ln_2", f)
            names |= _with_bias(f"{here}[1].layers[1][0]", f"{there}.mlp.c_fc", inner, is_transposed=True)
            names |= _with_bias(f"{here}[1].layers[1][2]", f"{there}.mlp.c_proj", f, is_transposed=True)
        return names

    @property
    def _hidden(self) -> int:
        return 4 * self.features if self.hidden is None else self.hidden


def _with_bias(path: str, name: str, rows: int, prefix: str = "", *, is_transposed: bool = False) -> dict[str, list[Piece]]:
    """The pieces of a weight and a bias; the weight of what GPT-2 calls Conv1D has its rows as columns."""
    return {
        f"{path}.{prefix}weight": [Piece(f"{name}.weight", rows, is_transposed)],
        f"{path}.{prefix}bias": [Piece(f"{name}.bias", rows)],
    }
