"""Layers of whose tensors each process has a part, and computes with it: heads of attention, features, tokens."""

from collections.abc import Sequence
from typing import Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import random, tree
from fundl._common.checks import require_model
from fundl._common.draws import is_of_piece
from fundl._common.suggestions import with_suggestions
from fundl.distributed._parts import InParts
from fundl.distributed.tensor_layers import Bias, EmbeddingPart, Joined, Spread, SpreadBoth, place_in, remember_place
from fundl.groups import Group, require_group
from fundl.layer import AnyLayer, Model
from fundl.layers._inside import Ts, fitting
from fundl.layers.attention import SelfAttention
from fundl.layers.cross_attention import CrossAttention
from fundl.layers.dropout import Dropout, is_stochastic
from fundl.layers.embedding import Embedding
from fundl.layers.feed_forward import GLU
from fundl.layers.linear import Linear
from fundl.layers.tied import Tied
from fundl.tree import Divided, Record, Split, Splits, describe


@final
@attrs.frozen(eq=False)
class TensorParallel(InParts[*Ts]):
    """Layers of whose tensors each process of a group has a part, with which it computes its part of the result: y = f(x).

    All processes have the same x, and get the same y. What is exchanged is what the parts give, once forward, and the gradient
    with respect to x, once backward; never parameters or their gradients.

        y = f_1(x) + ... + f_n(x) + c,  with f_r the part of process r, and c the last bias, which is added once

    `split_attention`, `split_feed_forward`, `split_embedding` and `split_output` say which parts there are; of the last one,
    y is the process's part of the logits.

    Its vjp: grad_f_r, grad_x_r = vjp(f_r, x, grad), grad_x = grad_x_1 + ... + grad_x_n, grad_c = sum over the rows of grad.

    Args:
        layers: f as it is in one process, but with the parts of its tensors.
        parts: what each trainable tensor is a part of, in their order; None for one that each process has whole.
        group: the processes.

    Shape:
        that of f

    Residuals:
        Those of the part.

    Source:
        Shoeybi, Patwary, Puri, LeGresley, Casper and Catanzaro, Megatron-LM: training multi-billion parameter language models
        using model parallelism, 2019.
    """

    made_by = "tensor_parallel"

    @override
    def _model(self, own: None = None) -> tuple[object, ...]:
        """The part of this process, between what spreads its input and what joins its output; without values, the whole."""
        if self.group.size == 1:
            return self.layers
        if any(leaf.is_meta for leaf in tree.trainable_leaves(self.layers)):
            return self._shown()
        return part_of_process(self.layers, self.group, self.parts)

    @override
    def _gradient(self, own: None, grads: object) -> Self:
        leaves = tree.trainable_leaves(grads)  # in the order of the layers: the last bias is the last of them, too
        return self.gradient(tree.with_trainable_leaves(self.layers, leaves))

    @override
    def summed_over(self) -> Sequence[Group]:
        return ()

    @override
    def child_of(self, name: str, before: Sequence[object], after: Sequence[object]) -> object:
        """The layers with the parts of this process, and with keys that draw its part of what the whole would draw."""
        layers = super().child_of(name, before, after)
        return layers if self.group.size == 1 else tree.map_records(self._with_piece, layers)

    def _with_piece(self, record: Record) -> Record:
        """A record with a key that draws the part of this process of what it would draw as a whole."""
        key: object = getattr(record, "key", None)
        if not is_stochastic(record) or not isinstance(key, Tensor) or is_of_piece(key):
            return record
        children = tree.children(record)
        place = place_in(self.group, key).reshape(1)
        children[record.children.index("key")] = random.of_piece(key, torch.cat((place, place.new_full((1,), self.group.size))))
        return tree.with_children(record, children)


def part_of_process(layers: Sequence[object], group: Group, parts: Splits) -> tuple[object, ...]:
    """The part of a process, as a model: what is between is run as it is."""
    (first, *between), n = layers, group.size
    if isinstance(first, SelfAttention | CrossAttention):
        few = None if first.key_value_heads is None else first.key_value_heads // n
        own = attrs.evolve(first, heads=first.heads // n, key_value_heads=few, output_bias=None)
        entry = Spread(group) if isinstance(first, SelfAttention) else SpreadBoth(group)
        return entry, own, Joined(group), *_last(first.output_bias)
    if isinstance(first, Embedding):
        assert parts[0] is not None  # it is its only tensor
        return EmbeddingPart(first.weight, parts[0].whole, first.padding, group), Joined(group)
    if not between:
        return Spread(group), first
    last = between.pop()
    assert isinstance(last, Linear)  # split_feed_forward has seen to it
    return Spread(group), first, *between, attrs.evolve(last, bias=None), Joined(group), *_last(last.bias)


def _last(bias: Tensor | None) -> tuple[Bias, ...]:
    return () if bias is None else (Bias(bias),)


# --- Splitting ---------------------------------------------------------------------------------------------------------


def split_attention(group: Group, attention: AnyLayer) -> TensorParallel:
    """Attention of whose heads each process has its share, 1/n.

    It has the rows of their queries, keys and values, and the columns by which the output sees them. The output's bias is whole
    in each process, and added once.

    Args:
        group: the processes, which all have the same input.
        attention: a `SelfAttention` or a `CrossAttention`.

    Raises:
        TypeError: it is neither, or there is no group.
        ValueError: the number of processes does not divide the heads, or those of keys and values; or the layer has `alibi`,
            `relative` or `visible`.

    >>> from fundl import self_attention
    >>> from fundl.distributed import Group, split_attention
    >>> split_attention(Group("four", 4, 0), self_attention(32, 8)).layers[0].weight.shape
    torch.Size([24, 32])
    """
    require_group(group)
    if not isinstance(attention, SelfAttention | CrossAttention):
        raise TypeError(f"split_attention takes a layer of self_attention or cross_attention, not {describe(attention)}")
    few, n = attention.key_value_heads or attention.heads, group.size
    for name, heads in (("heads", attention.heads), ("key_value_heads", few)):
        if heads % n:
            raise ValueError(
                f"{name}={heads} of attention cannot be divided among {n} processes: take a number of them that divides it"
            )
    for name in ("alibi", "relative", "visible"):
        if (given := getattr(attention, name, None)) is not None and given is not False:
            raise ValueError(f"attention with {name} is not divided: what it says of heads would be that of other heads")
    size = attention.output_weight.shape[1] // attention.heads
    own = (attention.heads * size,) if isinstance(attention, SelfAttention) else ()
    rows = (*own, few * size, few * size)
    packed = _split(group, sum(rows), -2, rows), _split(group, sum(rows), -1, rows)
    columns = _split(group, attention.heads * size, -1)
    parts: list[tuple[Tensor | None, Split | None]]
    parts = [(attention.weight, packed[0]), (attention.bias, packed[1]), (attention.output_weight, columns)]
    parts.append((attention.output_bias, None))
    if isinstance(attention, CrossAttention):
        queries = _split(group, attention.heads * size, -2), columns
        parts = [(attention.query_weight, queries[0]), (attention.query_bias, queries[1]), *parts]
    return _made(group, (attention,), parts)


def split_feed_forward(group: Group, *layers: AnyLayer) -> TensorParallel:
    """A network at each position, of whose inner features each process has its share, 1/n.

    It has the rows of the first linear map that make them, and the columns of the last one that see them. The last bias is
    whole in each process, and added once.

    Args:
        group: the processes, which all have the same input.
        layers: a `Linear`; what changes each feature by itself, such as an activation or `Dropout`, or a `GLU`; a `Linear`:
            what `feed_forward` and `gated_feed_forward` give.

    Raises:
        TypeError: there is no group, or a layer is none of these.
        ValueError: the number of processes does not divide the inner features, or the layers do not fit.

    >>> from fundl import feed_forward
    >>> from fundl.distributed import Group, split_feed_forward
    >>> split_feed_forward(Group("four", 4, 0), *feed_forward(32, 128)).layers
    (Linear(weight=float32[32, 32], bias=float32[32]), GELU(), Linear(weight=float32[32, 32], bias=float32[32]))
    """
    require_group(group)
    if not _is_network(layers):
        raise TypeError(
            "split_feed_forward takes a linear layer, layers that change each feature by itself and have no parameters, and a"
            f" linear layer, split_feed_forward(group, *feed_forward(32, 128)), not {describe(layers)}"
        )
    up, *between, down = layers
    assert isinstance(up, Linear)
    assert isinstance(down, Linear)
    inner, rows = down.weight.shape[-1], up.weight.shape[-2]
    if inner % group.size:
        raise ValueError(
            f"{inner} inner features cannot be divided among {group.size} processes: take a number of them that divides it"
        )
    blocks = (inner, inner) if any(isinstance(layer, GLU) for layer in between) else (inner,)
    fitting(TensorParallel(layers, (None,) * len(tree.trainable_leaves(layers)), Group(group.name, 1, 0)))
    ups = (up.weight, _split(group, rows, -2, blocks)), (up.bias, _split(group, rows, -1, blocks))
    return _made(group, layers, (*ups, (down.weight, _split(group, inner, -1)), (down.bias, None)))


def split_embedding(group: Group, embedding: AnyLayer) -> TensorParallel:
    """An embedding of whose rows each process has its share, those of 1/n of the tokens.

    Rows are filled up with zeros, so that all processes have as many.

    Args:
        group: the processes, which all are given the same tokens.
        embedding: an `Embedding`.

    Raises:
        TypeError: it is none, or there is no group.

    >>> from fundl import embedding
    >>> from fundl.distributed import Group, split_embedding
    >>> split_embedding(Group("four", 4, 0), embedding(65, 32)).layers
    (Embedding(weight=float32[17, 32]),)
    """
    require_group(group)
    if not isinstance(embedding, Embedding):
        hint = ": tied layers are for split_tied(group, embedding, *layers)" if isinstance(embedding, Tied) else ""
        raise TypeError(f"split_embedding takes an embedding, not {describe(embedding)}{hint}")
    return _made(group, (embedding,), [(embedding.weight, _split(group, embedding.weight.shape[-2], -2))])


def split_output(group: Group, output: AnyLayer) -> TensorParallel:
    """A last linear map, of whose rows, those of 1/n of the classes or tokens, each process has its share.

    What it gives is a part of the logits: their loss is `split_cross_entropy`. Rows are filled up with zeros, so that all
    processes have as many; the loss knows which classes there are.

    Args:
        group: the processes, which all have the same input.
        output: a `Linear`.

    Shape:
        (..., in) to (..., ceil(classes / n))

    Raises:
        TypeError: it is none, or there is no group.

    >>> from fundl import linear
    >>> from fundl.distributed import Group, split_output
    >>> split_output(Group("four", 4, 0), linear(32, 65)).layers
    (Linear(weight=float32[17, 32], bias=float32[17]),)
    """
    require_group(group)
    if not isinstance(output, Linear):
        raise TypeError(f"split_output takes a linear layer, the last of a model, not {describe(output)}")
    classes = output.weight.shape[-2]
    return _made(group, (output,), [(output.weight, _split(group, classes, -2)), (output.bias, _split(group, classes, -1))])


@with_suggestions
def tensor_parallel(group: Group, *layers: Model) -> Model:
    """A model in which attention, networks at each position, and embeddings are split among the processes of a group.

    It looks for them everywhere in the model, and splits them by `split_attention`, `split_embedding` and, where a tuple is a
    linear layer, what changes each feature by itself, and a linear layer, `split_feed_forward`. All else is whole in each
    process: norms, and linear layers that stand alone or in longer tuples. What the model takes and gives stays what it was,
    the same in all processes. A last layer whose output is to be split as well is for `split_output`.

        data, tensor = distributed.grid(data=4, tensor=2)
        block = tensor_parallel(tensor, transformer_block(512, 8, causal=True))
        model = (tensor_parallel(tensor, embedding(50_000, 512)), repeat(12, checkpoint(block)), layer_norm(512))
        step = train_step(loss, optimizer, over=data)

    Initialised from the same key, the numbers are those of the model without it, dropout too. `unshard` puts it together.

    Args:
        group: the processes, which all make the same model, and are given the same batches.
        layers: a layer, or models, which are composed.

    Raises:
        TypeError: there is no group, or something is no model.
        ValueError: the number of processes does not divide heads or inner features; layers are divided already, or tied; or
            there is nothing to split.

    >>> from fundl import transformer_block, tree
    >>> from fundl.distributed import Group, tensor_parallel
    >>> block = tensor_parallel(Group("four", 4, 0), transformer_block(16, 4))
    >>> tree.count(block), tree.nbytes(block)
    (3280, 3568)
    """
    require_group(group)
    model: Model = layers[0] if len(layers) == 1 else layers
    require_model(model)
    for record in tree.records(model):
        if isinstance(record, Divided):
            raise ValueError(f"the layers of tensor_parallel are divided already, by the {type(record).__name__} among them")
        if isinstance(record, Tied):
            raise ValueError(
                "tied layers give logits, of which each process would have its own: write split_tied(group, embedding,"
                " *layers), with tensor_parallel(group, ...) among the layers, and the loss split_cross_entropy"
            )
    found = _divided(group, model)
    if not tree.holds(tree.is_divided, found):
        raise ValueError(f"there is nothing to split: no attention, network or embedding is in {describe(model)}")
    return cast("Model", found)  # each layer of layers holds models


def _divided(group: Group, part: object) -> object:
    if isinstance(part, SelfAttention | CrossAttention):
        return split_attention(group, part)
    if isinstance(part, Embedding):
        return split_embedding(group, part)
    if type(part) is tuple and _is_network(part):
        return split_feed_forward(group, *part)
    if isinstance(part, tuple | list):
        return tree.rebuilt(part, [_divided(group, one) for one in part])
    return _with_divided(group, part) if isinstance(part, Record) else part


def _with_divided(group: Group, record: Record) -> Record:
    changed: dict[str, object] = {}
    for name in record.trainable:
        if not isinstance(getattr(record, name), Tensor | None):
            before = record.trees_of(name)
            changed[name] = record.child_of(name, before, [_divided(group, one) for one in before])
    return tree.evolved(record, changed) if changed else record


def _is_network(layers: tuple[object, ...]) -> bool:
    return (
        len(layers) > 2
        and isinstance(layers[0], Linear)
        and isinstance(layers[-1], Linear)
        and all(_is_between(layer) for layer in layers[1:-1])
    )


def _is_between(layer: object) -> bool:
    """Whether a layer changes each feature by itself, or pairs of them that a process has, and no tensor tells them apart."""
    if isinstance(layer, GLU):
        return layer.axis == -1 and _is_between(layer.activation)
    is_alone = isinstance(layer, Dropout) or bool(getattr(layer, "elementwise", False))
    return is_alone and not tree.trainable_leaves(layer) and not any(leaf.ndim for leaf in tree.leaves(layer))


def _split(group: Group, whole: int, axis: int, blocks: tuple[int, ...] = ()) -> Split:
    return Split(group, whole, -(-whole // group.size), axis, blocks if len(blocks) > 1 else ())


def _made(group: Group, layers: tuple[object, ...], parts: Sequence[tuple[Tensor | None, Split | None]]) -> TensorParallel:
    """The layers with the parts of this process."""
    remember_place(group)
    splits = tuple([split for leaf, split in parts if leaf is not None])
    own = [
        leaf if split is None or group.size == 1 else split.part_of(leaf, group.rank)
        for leaf, split in parts
        if leaf is not None
    ]
    return TensorParallel(tree.with_trainable_leaves(layers, own), splits, group)
