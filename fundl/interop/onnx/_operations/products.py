"""Products of matrices, convolutions, and max pooling."""

import functools
import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from fundl.interop.onnx._decompositions.convolution import each
from fundl.interop.onnx._writer import ExportError, Name, Rules, Writer, dtype_of, example_of, rank_of

_aten = torch.ops.aten


def _product(w: Writer, _node: Node, a: Node, b: Node) -> Name:
    return w.op("MatMul", w.value(a), w.value(b))


def _of_vector(w: Writer, _node: Node, a: Node, b: Node) -> Name:
    """A matrix, or a vector, times a vector, as one of a column: onnxruntime fuses a transposed matrix and a vector wrongly."""
    product = w.op("MatMul", w.value(a), w.op("Unsqueeze", w.value(b), w.ints(1)))
    return w.op("Squeeze", product, w.ints(-1))


def _product_and_sum(w: Writer, _node: Node, c: Node, a: Node, b: Node, *, beta: float = 1, alpha: float = 1) -> Name:
    return w.op("Gemm", w.value(a), w.value(b), w.value(c), alpha=float(alpha), beta=float(beta))


def _products_and_sums(w: Writer, node: Node, c: Node, a: Node, b: Node, *, beta: float = 1, alpha: float = 1) -> Name:
    dtype = dtype_of(node)
    product, added = _product(w, node, a, b), w.value(c)
    if alpha != 1:
        product = w.op("Mul", product, w.full(alpha, dtype))
    return w.op("Add", product, added if beta == 1 else w.op("Mul", added, w.full(beta, dtype)))


# --- Convolution -----------------------------------------------------------------------------------------------------------


def _convolution(
    w: Writer,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Name:
    if dtype_of(x) is torch.float64:
        raise ExportError(f"onnxruntime has no convolution in float64, {w.where()}: export the function in float32")
    axes = rank_of(x) - 2
    strides, pads, dilations, more = (each(values, axes) for values in (stride, padding, dilation, output_padding))
    given = [w.value(part) for part in (x, weight, bias) if part is not None]
    if not transposed:
        return w.op("Conv", *given, strides=strides, pads=pads * 2, dilations=dilations, group=groups)
    if all(extra < step for extra, step in zip(more, strides, strict=True)):
        options = {"strides": strides, "pads": pads * 2, "dilations": dilations, "output_padding": more}
        return w.op("ConvTranspose", *given, group=groups, **options)
    # torch allows as much output padding as the dilation, onnxruntime less than the stride: all of it, then cut or padded.
    whole = w.op("ConvTranspose", *given[:2], strides=strides, dilations=dilations, group=groups)
    sizes, kernel, wanted = (tuple(example_of(part).shape[2:]) for part in (x, weight, node))
    full = [(sizes[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(axes)]
    ends = [pads[i] + wanted[i] for i in range(axes)]
    spatial = w.ints(*range(2, axes + 2))
    zeros = w.ints(*[0] * axes, *[max(0, end - size) for end, size in zip(ends, full, strict=True)])
    padded = w.op("Pad", whole, zeros, w.full(0, dtype_of(x)), spatial, mode="constant")
    cut = w.op("Slice", padded, w.ints(*pads), w.ints(*ends), spatial)
    return cut if bias is None else w.op("Add", cut, w.op("Reshape", w.value(bias), w.ints(-1, *[1] * axes)))


# --- Max pooling -----------------------------------------------------------------------------------------------------------


def _max_pool(
    w: Writer,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    ceil: bool = False,
    *,
    axes: int,
) -> list[Name]:
    """The maxima, and the place of each in its image; ONNX counts places through the whole batch."""
    image = tuple(example_of(x).shape[-axes:])
    kernels, pads, dilations = (each(values, axes) for values in (kernel, padding, dilation))
    strides = each(stride, axes) if stride else kernels
    y = w.value(x)
    single = rank_of(x) == axes + 1  # one example, without a batch
    y = w.op("Unsqueeze", y, w.ints(0)) if single else y
    ends = pads
    if ceil:  # as much padding at the end as the last window needs
        outputs: Sequence[int] = node.meta["val"][0].shape[-axes:]
        reach = [(outputs[i] - 1) * strides[i] + dilations[i] * (kernels[i] - 1) + 1 for i in range(axes)]
        ends = [max(0, reach[i] - image[i] - pads[i]) for i in range(axes)]
    options = {"kernel_shape": kernels, "strides": strides, "pads": [*pads, *ends], "dilations": dilations}
    values, places = w.add("MaxPool", [y], 2, **options)
    places = w.op("Mod", places, w.index(math.prod(image)))
    if not single:
        return [values, places]
    return [w.op("Squeeze", part, w.ints(0)) for part in (values, places)]


TABLE: Rules = {
    _aten.addmm.default: _product_and_sum,
    _aten.baddbmm.default: _products_and_sums,
    _aten.bmm.default: _product,
    _aten.convolution.default: _convolution,
    _aten.dot.default: _of_vector,
    _aten.matmul.default: _product,
    _aten.max_pool2d_with_indices.default: functools.partial(_max_pool, axes=2),
    _aten.max_pool3d_with_indices.default: functools.partial(_max_pool, axes=3),
    _aten.mm.default: _product,
    _aten.mv.default: _of_vector,
}
