"""What losses of torch.nn compute, computed by fundl's: the module's settings, and what it is called with, become a loss."""

import functools
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from fundl import (
    DeferredLogits,
    Linear,
    Reshape,
    backward,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    chunked_cross_entropy,
    cross_entropy,
    ctc,
    forward,
    tree,
    unreduced,
    weighted,
)
from fundl.interop.torch_nn.losses import AnyLoss, converted
from tests.oracles.database import Arguments
from tests.oracles.listing import NotRunError

Found = tuple[Tensor, list[Tensor]]
"""The value of a loss, or its values one by one, and the gradients of their sum with respect to what a model gives."""

CLASSES: Final = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss)
"""Losses of samples that have an axis of classes."""
GIVEN: Final[Mapping[type[nn.Module], Sequence[int]]] = {
    nn.GaussianNLLLoss: (0, 2),
    nn.MarginRankingLoss: (0, 1),
    nn.CosineEmbeddingLoss: (0, 1),
    nn.TripletMarginLoss: (0, 1, 2),
}
"""Which of the things that a module is called with a model gives; of others, the first."""


def given_to(module: nn.Module) -> Sequence[int]:
    return GIVEN.get(type(module), (0,))


def evaluate(module: nn.Module, inputs: Sequence[object]) -> Found:
    """Value and gradients of the counterpart of a module, which is called with these inputs.

    What torch broadcasts, or has without an axis of the batch, is given its axes by views, through which torch takes the
    gradient back.
    """
    variables = [leaf(inputs[place]) for place in given_to(module)]
    called = list(inputs)
    for place, variable in zip(given_to(module), variables, strict=True):
        called[place] = variable
    prediction, target = arranged(module, called)
    value, grad = loss_of(module, target)(tree.map(Tensor.detach, prediction), target)
    grads = torch.autograd.grad(tree.leaves(prediction), variables, tree.leaves(grad), materialize_grads=True)
    return value, list(grads)


def leaf(x: object) -> Tensor:
    assert isinstance(x, Tensor)
    return x.detach().clone().requires_grad_()


def tensors(values: Sequence[object]) -> list[Tensor]:
    assert all(isinstance(value, Tensor) for value in values)
    return [value for value in values if isinstance(value, Tensor)]


def integers(value: object) -> tuple[int, ...]:
    assert isinstance(value, tuple | list)
    return tuple(int(str(number)) for number in value)


# --- What a module is called with, as a prediction and a target --------------------------------------------------------


def arranged(module: nn.Module, inputs: Sequence[object]) -> tuple[object, object]:
    """The prediction and the target of a loss."""
    if isinstance(module, nn.CTCLoss):
        return sequences(inputs)
    if isinstance(module, nn.TripletMarginLoss):
        return tuple(tensors(inputs)), None
    if isinstance(module, nn.GaussianNLLLoss):
        return moments(*tensors(inputs))
    if isinstance(module, nn.MarginRankingLoss | nn.CosineEmbeddingLoss):
        first, second, target = tensors(inputs)
        if (target == 0).any():
            raise NotRunError("a label of 0, which is no to fundl, and neither to torch")
        return (first, second), target
    x, target = tensors(inputs)
    if isinstance(module, nn.MultiLabelSoftMarginLoss):
        target = target.to(x.dtype)
    if isinstance(module, nn.MultiLabelMarginLoss):
        target = labels(target.reshape(-1, target.shape[-1] if target.ndim else 1)).reshape(x.shape)
    if isinstance(module, CLASSES) and x.ndim < 2:
        by_class = isinstance(module, nn.MultiLabelMarginLoss) or target.is_floating_point()
        return x.reshape(1, -1), target.reshape(1, -1) if by_class else target.reshape(1)
    return x, target


def moments(mean: Tensor, target: Tensor, variance: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Means, variances and targets of one shape."""
    if variance.shape != mean.shape and variance.shape == mean.shape[:-1]:
        variance = variance.unsqueeze(-1)
    shape = (mean + target + variance).shape
    return (mean.expand(shape), variance.expand(shape)), target.expand(shape)


def labels(indices: Tensor) -> Tensor:
    """1 for the classes that are named before the first -1, else 0."""
    named = (indices >= 0).to(torch.int64).cumprod(1).bool()
    if any(len(set(row[is_named].tolist())) < is_named.sum() for row, is_named in zip(indices, named, strict=True)):
        raise NotRunError("a label that is named twice")
    found = torch.zeros(len(indices), indices.shape[1] + 1, dtype=torch.int64)
    return found.scatter(1, torch.where(named, indices, indices.shape[1]), 1)[:, :-1]


def sequences(inputs: Sequence[object]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Frames and labels with the batch first, of which all have the same number of labels, those that are none being -1."""
    x, target = tensors(inputs[:2])
    frames, counts = (lengths(part) for part in inputs[2:])
    if x.ndim == 2:
        x, target = x.unsqueeze(1), target.reshape(1, -1)
    if target.ndim == 1:  # one sequence after the other
        parts = torch.split(target, counts.tolist())
        target = nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=-1)
    is_label = torch.arange(target.shape[1]) < counts.unsqueeze(1)
    return x.transpose(0, 1), (torch.where(is_label, target.to(torch.int64), -1), frames)


def lengths(value: object) -> Tensor:
    return torch.as_tensor(value).reshape(-1).to(torch.int64)


# --- Its loss ----------------------------------------------------------------------------------------------------------


def loss_of(module: nn.Module, target: object) -> AnyLoss:
    """The counterpart of a module; also where it takes a weight of each element, or a mean of means."""
    settings = {**vars(module), **module._buffers}
    weight, reduction = settings.get("weight"), str(settings["reduction"])
    if isinstance(module, nn.CTCLoss) and reduction == "mean":
        assert isinstance(target, tuple)
        of_sequences = functools.partial(ctc, blank=module.blank, zero_infinity=module.zero_infinity)
        return weighing(of_sequences, 1 / (target[0] >= 0).sum(1).clamp(min=1).double(), "mean")
    if not isinstance(target, Tensor) or not isinstance(
        module, nn.BCELoss | nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss
    ):
        return converted(module)
    if isinstance(module, nn.MultiLabelSoftMarginLoss):
        if weight is None and reduction == "mean":
            return converted(module)
        each = target.new_full((), 1 / target.shape[-1]) if weight is None else tensors([weight])[0] / target.shape[-1]
        return weighing(binary_cross_entropy_with_logits, each.expand_as(target), reduction, by_sample=True)
    if not isinstance(weight, Tensor):
        return converted(module)
    loss: AnyLoss = binary_cross_entropy
    if isinstance(module, nn.BCEWithLogitsLoss):
        loss = functools.partial(binary_cross_entropy_with_logits, pos_weight=module.pos_weight)
    return weighing(loss, weight.expand_as(target), reduction)


def weighing(loss: AnyLoss, weight: Tensor, reduction: str, *, by_sample: bool = False) -> AnyLoss:
    """A loss that times each of its losses by a weight, and then adds them up, or takes their mean as if there were no weight.

    `by_sample`: whether the losses of a sample are added up in any case.
    """

    def weighed(prediction: object, target: object) -> tuple[Tensor, object]:
        if reduction == "none":
            losses, grad = unreduced(loss)(prediction, target)
            losses = losses * weight
            return losses.sum(-1) if by_sample else losses, tree.map(lambda part: part * weight, grad)
        value, grad = weighted(functools.partial(loss, reduction="sum"))(prediction, (target, weight))
        samples = weight[..., 0] if by_sample else weight
        count = samples.numel() if reduction == "mean" else 1
        return value / count, tree.map(lambda part: part / count, grad)

    return weighed


# --- Of a linear map ---------------------------------------------------------------------------------------------------


def evaluate_linear(inputs: Arguments, options: Arguments) -> Found:
    """Value and gradients, with respect to features, weight and bias, of the cross-entropy of a linear map's outputs.

    With class indices, and one of them a sample, the map is never applied to all samples at once.
    """
    x, weight, target = tensors([inputs["input"], inputs["linear_weight"], inputs["target"]])
    bias = inputs.get("linear_bias")
    b = bias.flatten() if isinstance(bias, Tensor) else None
    given = {name: value for name, value in options.items() if value is not None and name not in {"options", "reduction"}}
    sample = x.ndim == 1
    h, t, w = (x.unsqueeze(0), target.unsqueeze(0), weight) if sample else (x, target, weight)
    is_deferred = weight.ndim == 2 and not target.is_floating_point()
    classes: AnyLoss = chunked_cross_entropy if is_deferred else cross_entropy
    loss = functools.partial(classes, **given)
    reduction = options.get("reduction", "mean")
    reduced: AnyLoss = unreduced(loss) if reduction == "none" else functools.partial(loss, reduction=reduction)
    if is_deferred:
        value, grad = reduced(DeferredLogits(h, w, b), t)
        assert isinstance(grad, DeferredLogits)
        found = [grad.features, grad.weight, grad.bias]
    else:
        model = Linear(w.flatten(0, -2), b), Reshape(tuple(w.shape[:-1]))
        y, residuals = forward(model, h)
        value, grad = reduced(y, t)
        assert isinstance(grad, Tensor)
        grads, grad_h = backward(model, residuals, grad)
        found = [grad_h, grads[0].weight, grads[0].bias]
    shapes = [x.shape, weight.shape, *([bias.shape] if isinstance(bias, Tensor) else [])]
    parts = tensors([part for part in found if part is not None])
    return value, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
