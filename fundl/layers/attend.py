"""Attention itself, without parameters of its own: queries, keys and values meet."""

from typing import Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.suggestions import require_tensor, with_suggestions
from fundl.initializers import Initializer, zeros
from fundl.layer import Layer
from fundl.layers._attending import Attended, Attention, Pairs
from fundl.layers._projecting import require_dropout, require_pairs, require_scores, require_visible
from fundl.model import apply
from fundl.random import Key
from fundl.tree import BUFFER, describe

Three: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Queries (B, H, T, d), keys (B, K, S, d) and values (B, K, S, d)."""


@final
@attrs.frozen(eq=False)
class Attend(Layer[Attended, Three, Tensor]):
    """Attention of queries to keys, each of which has a value: y = softmax(s) v, over the keys that a query sees.

        r = c q k^T,  c = 1 / sqrt(d);    s = C tanh(r / C) + b - m |n|,    p = softmax(s),    y = p v

    without the C where there is no soft cap, and without b or m likewise. n is how many positions the key is before the
    query; the last query is at the position of the last key, as where the keys of earlier positions were kept. ALiBi's slope
    m is 2^(-8 h / H) for head h = 1, ..., H. Head h of the queries goes with head h // (H / K) of the keys. A query that sees
    no key has y = 0.

    Its vjp:

        grad_v = p^T grad,    grad_p = grad v^T,    grad_s = p (grad_p - sum over the keys of grad_p p),    grad_b = grad_s,
        grad_r = grad_s (1 - tanh(r / C)^2),        grad_q = c grad_r k,    grad_k = c grad_r^T q

    Args:
        bias: b, a parameter, added to the scores: of a shape that broadcasts to (B, H, T, S), such as (H, T, S); None, the
            default, for none.
        causal: whether a query sees no keys behind its own position; False by default.
        window: a query sees keys that are less than so many positions away, its own among them; None, the default, for all.
        soft_cap: C, which no score exceeds; None, the default, for none.
        alibi: whether scores fall with the distance; False by default.
        scale: c; None, the default, for 1 / sqrt(d).
        dropout: the probability to drop a weight p, from 0, the default, up to, but not including, 1.
        key: what dropout draws from; None, the default, for no dropout. `rekey` fills it.
        mask: of shape (B, S) and dtype bool, True where a key is real; None, the default, if all are.
        visible: of dtype bool, True where a query may see a key: of a shape that broadcasts to (B, H, T, S), such as (T, S);
            None, the default, if each may see all.
        bias_init: how `initialize` draws the bias; zeros by default.

    Shape:
        q (B, H, T, d), k and v (B, K, S, d), where K divides H, to (B, H, T, d)

    Residuals:
        The inputs, shared; the output; 1 number for each query and head. With a bias, a soft cap or dropout, or where no kernel
        takes it (on CUDA also with a window, ALiBi or `visible`), instead of the two S numbers, and with dropout S bytes.

    Raises:
        ValueError: an option is out of its range, or the shapes do not fit.
        TypeError: the input is not three tensors of one dtype, or a mask is not of dtype bool.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017; Press, Smith
        and Lewis, Train short, test long: attention with linear biases enables input length extrapolation, 2021; Beltagy,
        Peters and Cohan, Longformer: the long-document transformer, 2020; Gemma Team, Gemma 2, 2024, for the cap.

    >>> import torch
    >>> from fundl import Attend, vjp
    >>> q, k, v = torch.zeros(3, 1, 1, 2, 4) + torch.tensor([0.0, 4.0]).reshape(2, 1)
    >>> grads, (grad_q, grad_k, grad_v) = vjp(Attend(causal=True), (q, k, v), torch.ones(1, 1, 2, 4))
    >>> grad_v.shape
    torch.Size([1, 1, 2, 4])
    """

    bias: Tensor | None = attrs.field(default=None, kw_only=True)
    causal: bool = attrs.field(default=False, kw_only=True)
    window: int | None = attrs.field(default=None, kw_only=True)
    soft_cap: float | None = attrs.field(default=None, kw_only=True)
    alibi: bool = attrs.field(default=False, kw_only=True)
    scale: float | None = attrs.field(default=None, kw_only=True)
    dropout: float = attrs.field(default=0.0, kw_only=True)
    key: Key | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    mask: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    visible: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_scores("Attend", self.window, self.soft_cap, self.scale)
        require_dropout("Attend", self.dropout)

    @property
    def draws(self) -> bool:
        """Whether it has any use for a key."""
        return self.dropout > 0

    @override
    def forward(self, x: Three) -> tuple[Tensor, Attended]:
        q, k, v = _three(x)
        sizes = (*q.shape[:3], k.shape[2])
        if self.visible is not None:
            require_visible("Attend", self.visible, sizes)
        if self.bias is not None:
            require_pairs("Attend", "bias", self.bias, sizes)
        if self.mask is not None and self.mask.shape != (sizes[0], sizes[3]):
            raise ValueError(
                f"Attend's mask must be of shape (B, S), {(sizes[0], sizes[3])} for these keys, not {tuple(self.mask.shape)}:"
                " what differs from query to query is given as visible"
            )
        q, k, v = _dense(q), _dense(k), _dense(v)
        attended = self._attention.forward(q, k, v, self.mask, self.key, pairs=self._pairs)
        return attended.output, attended

    @override
    def backward(self, residuals: Attended, grad: Tensor) -> tuple[Self, Three]:
        *grads, grad_bias = self._attention.backward_with_bias(residuals, self.mask, _dense(grad), pairs=self._pairs)
        grad_q, grad_k, grad_v = grads
        return self.gradient(grad_bias), (grad_q, grad_k, grad_v)

    @property
    def _attention(self) -> Attention:
        return Attention(self.causal, self.dropout, self.window, self.soft_cap, self.alibi, self.scale)

    @property
    def _pairs(self) -> Pairs:
        return Pairs(self.visible, self.bias)


def _three(given: object) -> Three:
    """Queries, keys and values that belong together."""
    if not (isinstance(given, tuple) and len(given) == 3 and all(isinstance(part, Tensor) for part in given)):
        raise TypeError(f"attention takes three tensors, (queries, keys, values), not {describe(given)}")
    q, k, v = given
    shapes = f"queries of shape {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)}"
    if not q.ndim == k.ndim == 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention takes queries (B, H, T, d), and keys and values both (B, K, S, d), not {shapes}")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of keys and values must divide those of queries, but here are {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"queries, keys and values must be of one dtype, but they are {q.dtype}, {k.dtype} and {v.dtype}")
    return q, k, v


def _dense(x: Tensor) -> Tensor:
    """The tensor as kernels read it, its features one behind the other; a copy, if they are not."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


@with_suggestions
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention of queries to keys, each of which has a value: softmax(q k^T / sqrt(d)) v, over the keys that a query sees.

    `Attend` is the layer of it, with the formula, the errors and the sources: ``vjp(Attend(...), (q, k, v), grad)`` gives the
    gradients with respect to all three, and to the bias.

    Args:
        q: queries, (B, H, T, d).
        k: keys, (B, K, S, d), where K divides H.
        v: values, likewise.
        causal: whether a query sees no keys behind its own position; the last query is at the position of the last key.
        mask: of shape (B, S) and dtype bool, True where a key is real.
        visible: of dtype bool, True where a query may see a key: of a shape that broadcasts to (B, H, T, S), such as (T, S).
        bias: added to the scores, of such a shape, too.
        window: a query sees keys that are less than so many positions away.
        soft_cap: C, for scores C tanh(score / C).
        alibi: whether scores fall with the distance, by a slope of each head.
        scale: what q k^T is multiplied with in place of 1 / sqrt(d).

    Returns:
        (B, H, T, d); 0 for a query that sees nothing.

    >>> import torch
    >>> from fundl import attention
    >>> v = torch.tensor([1.0, 3.0, 5.0]).reshape(1, 1, 3, 1)
    >>> attention(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), v, causal=True, window=2).flatten()
    tensor([1., 2., 4.])
    """
    for name, given in (("q, the queries,", q), ("k, the keys,", k), ("v, the values,", v)):
        require_tensor(given, f"{name} must be")
    layer = Attend(
        bias=bias,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        alibi=alibi,
        scale=scale,
        mask=mask,
        visible=visible,
    )
    return apply(layer, (q, k, v))
