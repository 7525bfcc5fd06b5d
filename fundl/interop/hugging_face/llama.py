"""Llama, and models of its layout, as models of fundl, and where their tensors are in Hugging Face's files."""

import math
from typing import Final, Self, TypeAlias, final

import attrs
import torch

from fundl.initializers import normal, zeros
from fundl.interop._layouts import Names, Piece
from fundl.interop.hugging_face._config import Config, activation_of
from fundl.layers._refusals import require_at_least_one
from fundl.layers.attention import SelfAttention, self_attention
from fundl.layers.dropout import Dropout
from fundl.layers.embedding import Embedding, embedding
from fundl.layers.feed_forward import GLU
from fundl.layers.linear import Linear, linear
from fundl.layers.normalization import RMSNorm, rms_norm
from fundl.layers.positional import Stretch
from fundl.layers.structure import residual
from fundl.layers.tied import Tied, tied
from fundl.layers.transformer import AttentionPart, NetworkPart
from fundl.model import compose

Network: TypeAlias = tuple[Linear[int, int], GLU, Linear[int, int]]
Block: TypeAlias = tuple[AttentionPart[RMSNorm[int], int], NetworkPart[RMSNorm[int], Network]]
LlamaModel: TypeAlias = (
    tuple[Embedding[int], tuple[Block, ...], RMSNorm[int], Linear[int, int]] | tuple[Tied[int, tuple[Block, ...], RMSNorm[int]]]
)
"""Embedding, blocks, norm, and a linear layer that tells the tokens; or one matrix for the first and the last, tied."""

_ARCHITECTURES: Final = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}

_STRETCH: Final = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _stretch_of(config: Config) -> Stretch | None:
    """How config.json has slow rotations made slower."""
    kind = config.get("rope_type", str, None) or config.get("type", str, "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"in {config.where}, rope_type is {kind!r}, but known here are default and llama3")
    factor, low, high, length = (config.get(name, float) for name in _STRETCH[1:])
    return factor, low, high, length


@final
@attrs.frozen(kw_only=True)
class Llama:
    """The sizes of a Llama, or of a model of its layout.

    Args:
        vocabulary: V, how many tokens there are.
        features: F, of each position.
        hidden: features inside of each network.
        blocks: how many.
        heads: of queries.
        key_value_heads: of keys and values; None, the default, for as many.
        head_features: of each head; None, the default, for F / heads.
        rotary: the base of the angles by which queries and keys are turned.
        stretch: (factor, low, high, length) of Llama 3.1's longer sequences, see `SelfAttention`; None, the default, for none.
        window: how many positions each sees; None, the default, for all before it.
        eps: of the norms.
        projection_bias: whether queries, keys and values have a bias.
        output_bias: whether the output of attention has one.
        network_bias: whether the networks have one.
        is_tied: whether the embedding tells the tokens, too.
        activation: of the gates, by its name in a config.json.
        kind: model_type in config.json.

    Source:
        Touvron, Lavril, Izacard, Martinet, Lachaux, Lacroix, Rozière, Goyal, Hambro, Azhar, Rodriguez, Joulin, Grave and
        Lample, LLaMA: open and efficient foundation language models, 2023.

    >>> from fundl import tree
    >>> from fundl.interop.hugging_face import Llama
    >>> sizes = Llama(vocabulary=32_000, features=256, hidden=688, blocks=4, heads=8, key_value_heads=2)
    >>> tree.count(sizes.model())
    19155200
    """

    vocabulary: int
    features: int
    hidden: int
    blocks: int
    heads: int
    key_value_heads: int | None = None
    head_features: int | None = None
    rotary: float = 10_000.0
    stretch: Stretch | None = None
    window: int | None = None
    eps: float = 1e-6
    projection_bias: bool = False
    output_bias: bool = False
    network_bias: bool = False
    is_tied: bool = False
    activation: str = "silu"
    kind: str = "llama"

    def __attrs_post_init__(self) -> None:
        require_at_least_one(vocabulary=self.vocabulary, hidden=self.hidden, blocks=self.blocks, head_features=self._size)
        if self.kind not in _ARCHITECTURES:
            raise ValueError(f"kind must be one of {', '.join(_ARCHITECTURES)}, not {self.kind!r}")

    @classmethod
    def of_config(cls, config: Config) -> Self:
        """Those of a config.json."""
        kind = config.get("model_type", str)
        rotary = config.inside("rope_parameters") or config.inside("rope_scaling") or config
        base = rotary.get("rope_theta", float, None) or config.get("rope_theta", float, 10_000.0)
        has_bias = config.get("attention_bias", bool, False)  # the default
        uses_window = config.get("use_sliding_window", bool, kind == "mistral")
        config.require_alike("layer_types")
        if kind == "qwen2":
            config.require("use_sliding_window", False, default=False)  # of some of its blocks alone
        return cls(
            vocabulary=config.get("vocab_size", int),
            features=config.get("hidden_size", int),
            hidden=config.get("intermediate_size", int),
            blocks=config.get("num_hidden_layers", int),
            heads=config.get("num_attention_heads", int),
            key_value_heads=config.get("num_key_value_heads", int, None),
            head_features=config.get("head_dim", int, None),
            rotary=base,
            stretch=_stretch_of(rotary),
            window=config.get("sliding_window", int, None) if uses_window else None,
            eps=config.get("rms_norm_eps", float, 1e-6),
            projection_bias=has_bias or kind == "qwen2",
            output_bias=has_bias,
            network_bias=config.get("mlp_bias", bool, False),  # likewise
            is_tied=config.get("tie_word_embeddings", bool, False),  # likewise
            activation=config.get("hidden_act", str, "silu"),
            kind=kind,
        )

    def config(self) -> dict[str, object]:
        """What config.json has to say of it."""
        if self.projection_bias != (self.output_bias or self.kind == "qwen2"):
            raise ValueError(
                f"a model of kind {self.kind!r} with projection_bias={self.projection_bias} and output_bias={self.output_bias}"
                " has no config.json: transformers has both or neither, and qwen2 the first"
            )
        return {
            "model_type": self.kind,
            "architectures": [f"{_ARCHITECTURES[self.kind]}ForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.features,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self._few,
            **({} if self.head_features is None else {"head_dim": self.head_features}),
            "rope_theta": self.rotary,
            "rope_scaling": None if self.stretch is None else dict(zip(_STRETCH, ("llama3", *self.stretch), strict=True)),
            "sliding_window": self.window,
            "use_sliding_window": self.window is not None,
            "rms_norm_eps": self.eps,
            "attention_bias": self.output_bias,
            "mlp_bias": self.network_bias,
            "tie_word_embeddings": self.is_tied,
            "hidden_act": self.activation,
        }

    def model(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> LlamaModel:
        """The model, without values: give it some with `initialize`, or `load` them.

        Weights are drawn from N(0, 0.02^2), those of the last layer of each part of a block 1 / sqrt(2 blocks) times as large.

        Args:
            dropout: of attention, and what each part of a block gives.
            dtype: of the parameters.
        """
        f, wide, narrow = self.features, normal(0.02), normal(0.02 / math.sqrt(2 * self.blocks))
        norm, bias = rms_norm(f, eps=self.eps, dtype=dtype), self.network_bias
        network = (
            linear(f, 2 * self.hidden, bias=bias, weight_init=wide, bias_init=zeros(), dtype=dtype),
            GLU(activation_of(self.activation)),
            linear(self.hidden, f, bias=bias, weight_init=narrow, bias_init=zeros(), dtype=dtype),
        )
        attention = self._attention(dropout, dtype)
        block = residual(norm, attention, Dropout(dropout)), residual(norm, network, Dropout(dropout))
        reads, blocks = embedding(self.vocabulary, f, weight_init=wide, dtype=dtype), (block,) * self.blocks
        if self.is_tied:
            return (tied(reads, blocks, norm),)
        return compose(reads, blocks, norm, linear(f, self.vocabulary, bias=False, weight_init=wide, dtype=dtype))

    def _attention(self, dropout: float, dtype: torch.dtype) -> SelfAttention[int]:
        wide = self.heads * self._size  # of all heads together, which need not be that of the layer
        attention = self_attention(
            wide,
            self.heads,
            key_value_heads=None if self._few == self.heads else self._few,
            causal=True,
            rotary=self.rotary,
            stretch=self.stretch,
            window=self.window,
            dropout=dropout,
            weight_init=normal(0.02),
            output_weight_init=normal(0.02 / math.sqrt(2 * self.blocks)),
            dtype=dtype,
        )
        rows = attention.weight.shape[0]
        return attrs.evolve(
            attention,
            weight=torch.empty(rows, self.features, dtype=dtype, device="meta"),
            bias=attention.bias if self.projection_bias else None,
            output_weight=torch.empty(self.features, wide, dtype=dtype, device="meta"),
            output_bias=torch.empty(self.features, dtype=dtype, device="meta") if self.output_bias else None,
        )

    def names(self) -> Names:
        """Where the tensors of the model are in a file."""
        f, start = self.features, "[0].layers" if self.is_tied else ""
        norm, blocks = (f"{start}[1]", f"{start}[0]") if self.is_tied else ("[2]", "[1]")
        reads = "[0].embedding.weight" if self.is_tied else "[0].weight"
        names = {
            reads: [Piece("model.embed_tokens.weight", self.vocabulary)],
            f"{norm}.weight": [Piece("model.norm.weight", f)],
        }
        if not self.is_tied:
            names["[3].weight"] = [Piece("lm_head.weight", self.vocabulary)]
        for number in range(self.blocks):
            names |= self._names_of_block(f"{blocks}[{number}]", f"model.layers.{number}")
        return names

    def _names_of_block(self, here: str, there: str) -> dict[str, list[Piece]]:
        f, q, kv, inner = self.features, self.heads * self._size, self._few * self._size, self.hidden
        queries = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]
        affine = [
            (f"{here}[0].layers[1].", "", queries, self.projection_bias),
            (f"{here}[0].layers[1].", "output_", [("self_attn.o_proj", f)], self.output_bias),
            (f"{here}[1].layers[1][0].", "", [("mlp.up_proj", inner), ("mlp.gate_proj", inner)], self.network_bias),
            (f"{here}[1].layers[1][2].", "", [("mlp.down_proj", f)], self.network_bias),
        ]
        names = {
            f"{here}[0].layers[0].weight": [Piece(f"{there}.input_layernorm.weight", f)],
            f"{here}[1].layers[0].weight": [Piece(f"{there}.post_attention_layernorm.weight", f)],
        }
        for path, prefix, parts, has_bias in affine:
            for what in ("weight", "bias") if has_bias else ("weight",):
                names[f"{path}{prefix}{what}"] = [Piece(f"{there}.{name}.{what}", rows) for name, rows in parts]
        return names

    @property
    def _few(self) -> int:
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def _size(self) -> int:
        return self.features // self.heads if self.head_features is None else self.head_features
