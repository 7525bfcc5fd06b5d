"""The vision transformer as a model of fundl, and where its tensors are in torchvision's state."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple, Self, TypeAlias, final

import attrs
import torch

from fundl.initializers import normal, truncated_normal, zeros
from fundl.interop._layouts import Names, Piece
from fundl.interop.torch_vision._named import known
from fundl.layers._refusals import require_at_least_one
from fundl.layers.activation import Tanh
from fundl.layers.attention import self_attention
from fundl.layers.convolution import Conv2d, conv2d
from fundl.layers.dropout import Dropout
from fundl.layers.linear import Linear, linear
from fundl.layers.normalization import LayerNorm, layer_norm
from fundl.layers.patches import ClassToken, FirstPosition, ToSequence, class_token
from fundl.layers.positional import LearnedPositions, learned_positions
from fundl.layers.self_gated import GELU
from fundl.layers.structure import residual
from fundl.layers.transformer import AttentionPart, NetworkPart

Network: TypeAlias = tuple[Linear[int, int], GELU, Dropout, Linear[int, int]]
Block: TypeAlias = tuple[AttentionPart[LayerNorm[int], int], NetworkPart[LayerNorm[int], Network]]
Head: TypeAlias = Linear[int, int] | tuple[Linear[int, int], Tanh, Linear[int, int]]


@final
class ViTModel(NamedTuple):
    """A vision transformer: images (B, 3, H, W) to logits (B, classes)."""

    patches: tuple[Conv2d, ToSequence]
    token: ClassToken[int]
    positions: LearnedPositions[int]
    dropout: Dropout
    blocks: tuple[Block, ...]
    norm: LayerNorm[int]
    first: FirstPosition
    head: Head


@final
@attrs.frozen(kw_only=True)
class ViT:
    """The sizes of a vision transformer in the layout of torchvision.

    Args:
        image: height and width of an image, a multiple of the patch.
        patch: height and width of a patch.
        features: F, of each position; a multiple of the heads.
        hidden: features inside of each network.
        blocks: how many.
        heads: of each attention.
        classes: how many.
        representation: features of a layer with tanh before the last one; None, the default, for no such layer.
        eps: of the norms.

    Raises:
        ValueError: a number is less than 1, or does not divide another as it must.

    Source:
        Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit and
        Houlsby, An image is worth 16x16 words: transformers for image recognition at scale, 2020.

    >>> from fundl import tree
    >>> from fundl.interop import torch_vision
    >>> tree.count(torch_vision.ViT.named("vit_b_16").model())
    86567656
    """

    image: int = 224
    patch: int
    features: int
    hidden: int
    blocks: int
    heads: int
    classes: int = 1000
    representation: int | None = None
    eps: float = 1e-6

    def __attrs_post_init__(self) -> None:
        require_at_least_one(image=self.image, patch=self.patch, hidden=self.hidden, blocks=self.blocks, classes=self.classes)
        if self.image % self.patch:
            raise ValueError(f"image must be a multiple of patch, but image={self.image} and patch={self.patch}")

    @classmethod
    def named(cls, name: str, *, classes: int = 1000, image: int = 224) -> Self:
        """Those of one of torchvision's functions, such as "vit_b_16".

        Raises:
            ValueError: there is none of that name.

        >>> from fundl.interop import torch_vision
        >>> torch_vision.ViT.named("vit_b_32", image=384).heads
        12
        """
        patch, blocks, heads, features, hidden = known("ViT", _NAMED, name)
        return cls(image=image, patch=patch, features=features, hidden=hidden, blocks=blocks, heads=heads, classes=classes)

    def model(self, *, dropout: float = 0.0, attention_dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> ViTModel:
        """The model, without values: give it some with `initialize`, or `load` them.

        Args:
            dropout: the rate at which features are dropped in training: of positions, and of what each part of a block gives.
            attention_dropout: that at which weights of attention are.
            dtype: of the parameters.
        """
        f, side = self.features, self.image // self.patch
        norm, of_bias = layer_norm(f, eps=self.eps, dtype=dtype), normal(1e-6)
        patches = conv2d(
            3,
            f,
            self.patch,
            stride=self.patch,
            weight_init=truncated_normal(math.sqrt(1 / (3 * self.patch**2))),
            bias_init=zeros(),
            dtype=dtype,
        )
        network = (
            linear(f, self.hidden, bias_init=of_bias, dtype=dtype),
            GELU(),
            Dropout(dropout),
            linear(self.hidden, f, bias_init=of_bias, dtype=dtype),
        )
        attention = self_attention(f, self.heads, dropout=attention_dropout, dtype=dtype)
        block = residual(norm, attention, Dropout(dropout)), residual(norm, network, Dropout(dropout))
        return ViTModel(
            (patches, ToSequence((side, side))),
            class_token(f, dtype=dtype),
            learned_positions(side**2 + 1, f, dtype=dtype),
            Dropout(dropout),
            (block,) * self.blocks,
            norm,
            FirstPosition(),
            self._head(dtype),
        )

    def names(self) -> Names:
        """Where the tensors of the model are in torchvision's state."""
        f, positions = self.features, (self.image // self.patch) ** 2 + 1
        names = {
            **_affine(".patches[0]", "conv_proj", f),
            ".token.weight": [Piece("class_token", f, ones=2)],
            ".positions.weight": [Piece("encoder.pos_embedding", positions, ones=1)],
            **_affine(".norm", "encoder.ln", f),
        }
        if self.representation is None:
            names |= _affine(".head", "heads.head", self.classes)
        else:
            names |= _affine(".head[0]", "heads.pre_logits", self.representation)
            names |= _affine(".head[2]", "heads.head", self.classes)
        for number in range(self.blocks):
            here, there = f".blocks[{number}]", f"encoder.layers.encoder_layer_{number}"
            attention = f"{here}[0].layers[1]"
            names |= _affine(f"{here}[0].layers[0]", f"{there}.ln_1", f)
            names[f"{attention}.weight"] = [Piece(f"{there}.self_attention.in_proj_weight", 3 * f)]
            names[f"{attention}.bias"] = [Piece(f"{there}.self_attention.in_proj_bias", 3 * f)]
            names[f"{attention}.output_weight"] = [Piece(f"{there}.self_attention.out_proj.weight", f)]
            names[f"{attention}.output_bias"] = [Piece(f"{there}.self_attention.out_proj.bias", f)]
            names |= _affine(f"{here}[1].layers[0]", f"{there}.ln_2", f)
            names |= _affine(f"{here}[1].layers[1][0]", f"{there}.mlp.0", self.hidden)
            names |= _affine(f"{here}[1].layers[1][3]", f"{there}.mlp.3", f)
        return names

    def _head(self, dtype: torch.dtype) -> Head:
        f, size = self.features, self.representation
        last = linear(f if size is None else size, self.classes, weight_init=zeros(), bias_init=zeros(), dtype=dtype)
        if size is None:
            return last
        drawn = truncated_normal(math.sqrt(1 / f))
        return linear(f, size, weight_init=drawn, bias_init=zeros(), dtype=dtype), Tanh(), last


def _affine(path: str, name: str, rows: int) -> dict[str, list[Piece]]:
    return {f"{path}.{field}": [Piece(f"{name}.{field}", rows)] for field in ("weight", "bias")}


_NAMED: Final[Mapping[str, tuple[int, int, int, int, int]]] = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}
"""Patch, blocks, heads, features, and those inside of networks."""
