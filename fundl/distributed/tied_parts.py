"""A model of tokens with one matrix at both ends, of whose rows each process has some."""

from collections.abc import Sequence
from typing import Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common import products
from fundl._common.checks import models
from fundl._common.running import run_backward
from fundl._common.suggestions import with_suggestions
from fundl.collectives import reduced
from fundl.distributed.sharding import unshard
from fundl.distributed.splitting import TensorParallel, split_embedding
from fundl.groups import Group
from fundl.layer import AnyLayer, Layer, Model, zero_gradient
from fundl.layers._inside import fitting, forward_inside
from fundl.layers._layout import as_matrix
from fundl.layers.embedding import Embedding
from fundl.layers.tied import Tied
from fundl.shapes import AnyShape, of_model
from fundl.tree import Divided, Splits


@final
@attrs.frozen(eq=False)
class SplitTied(Divided, Layer[tuple[Tensor, object, object, Tensor]]):
    """`Tied` layers of whose matrix W each process of a group has the rows W_r of its tokens: y_r = f(W[x]) W_r^T.

    All processes have the same tokens x; what is looked up is added up, and y_r are the logits of the process's own tokens,
    whose loss is `split_cross_entropy`.

    Its vjp, with e = W[x], h = f(e), and the sum over the processes:

        grad_h = grad_1 W_1 + ... + grad_n W_n,    grad_f, grad_e = vjp(f, e, grad_h)
        grad_W_r = grad_r^T h + its rows of the embedding's gradient for grad_e,    grad_x = 0

    Args:
        embedding: of the tokens, split by `split_embedding`.
        layers: f, the layers one after the other; best given to `split_tied`.

    Shape:
        (...) to (..., ceil(vocabulary / n))

    Residuals:
        Those of the embedding and of the layers; the tokens, shared; h.

    Source:
        Press and Wolf, Using the output embedding to improve language models, 2017; and that of `TensorParallel`.
    """

    takes_integers = True

    embedding: TensorParallel[Embedding]
    layers: tuple[Model, ...]

    @property
    @override
    def places(self) -> int:
        return 1  # that of the Tied that it stands for

    def _weight(self) -> Tensor:
        """The rows of this process; of a model without values all of them, as with other split layers."""
        (own,) = tree.trainable_leaves(self.embedding)
        return tree.trainable_leaves(self.embedding.as_whole())[0] if own.is_meta else own

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, object, object, Tensor]]:
        embedded, looked_up = self.embedding.forward(x)
        h, residuals = forward_inside(self.layers, embedded)
        weight = self._weight()
        if h.shape[-1:] != weight.shape[1:]:
            raise ValueError(
                f"the layers of split_tied must give as many features as the embedding, {weight.shape[1]}, but their output's"
                f" shape is {tuple(h.shape)}"
            )
        return products.linear(h, weight, None), (x, looked_up, residuals, h)

    @override
    def backward(self, residuals: tuple[Tensor, object, object, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        tokens, looked_up, *kept = residuals
        del residuals  # so that those of each layer are freed once its backward has run: see `Pass`
        weight = self._weight()
        grad_weight = torch.mm(as_matrix(grad).t(), as_matrix(cast("Tensor", kept.pop())))  # (vocabulary, N) (N, features)
        grad_h = products.matmul(grad, weight)
        if not weight.is_meta:
            (grad_h,) = reduced([grad_h], self.embedding.group)
        grads, grad_embedded = run_backward(cast("Model", self.layers), kept.pop(), grad_h)
        of_embedding, _ = run_backward(cast("Model", self.embedding), looked_up, grad_embedded)
        (of_rows,) = tree.trainable_leaves(of_embedding)
        both = tree.with_trainable_leaves(self.embedding, [of_rows + grad_weight])
        return self.gradient(both, grads), zero_gradient(tokens)

    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        return of_model(shape, self.as_whole())

    @override
    def splits(self) -> Splits:
        inner = tree.splits_of(self.layers) or (None,) * len(tree.trainable_leaves(self.layers))
        return *self.embedding.splits(), *inner

    @override
    def summed_over(self) -> Sequence[Group]:
        return ()

    @override
    def undivided(self) -> Tied:
        return self._tied(self.embedding.undivided(), unshard(self.layers))

    @override
    def as_whole(self) -> Tied:
        return self._tied(self.embedding.as_whole(), tree.as_whole(self.layers))

    def _tied(self, embedding: object, layers: object) -> Tied:
        assert isinstance(embedding, Embedding)
        assert isinstance(layers, tuple)
        return Tied(embedding, layers)


@with_suggestions
def split_tied(group: Group, embedding: AnyLayer, *layers: Model) -> SplitTied:
    """`tied` layers whose matrix is split: each process has the rows, and gives the logits, of 1/n of the tokens.

        blocks = repeat(12, checkpoint(tensor_parallel(tensor, transformer_block(512, 8, causal=True))))
        model = split_tied(tensor, embedding(50_000, 512), blocks, layer_norm(512))
        loss = partial(split_cross_entropy, group=tensor, classes=50_000, axis=-1)

    Args:
        group: the processes, which all are given the same tokens.
        embedding: an `Embedding`.
        layers: layers, or models; those of `tensor_parallel` may be among them.

    Raises:
        TypeError: the first is no embedding, or there is no group.
        ValueError: the layers do not keep the number of features, or are divided otherwise.

    >>> from fundl import embedding, layer_norm, tree
    >>> from fundl.distributed import Group, split_tied
    >>> model = split_tied(Group("four", 4, 0), embedding(65, 32), layer_norm(32))
    >>> model.embedding.layers, tree.count(model)
    ((Embedding(weight=float32[17, 32]),), 2144)
    """
    split, inner = split_embedding(group, embedding), models(*layers)
    for record in tree.records(inner):
        if isinstance(record, Divided) and not isinstance(record, TensorParallel):
            raise ValueError(
                f"split_tied takes layers that are whole, or of tensor_parallel, not of {type(record).__name__}: give the model"
                " an embedding and a last layer of its own, by split_embedding and split_output"
            )
    made = SplitTied(split, inner)
    fitting(made.as_whole())
    return made
