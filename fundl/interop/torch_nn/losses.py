"""Losses: a module of torch.nn as a function of a prediction and a target, and a loss as the module that computes it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Final, Never, TypeAlias, cast, overload

import attrs
import torch
from torch import Tensor, nn

from fundl._common.checks import require_loss
from fundl._common.suggestions import is_function, name_of
from fundl.interop.torch_nn._counterparts import copied, require
from fundl.interop.torch_nn.conversion import class_name, named, require_plain
from fundl.layer import Loss
from fundl.losses.classification import cross_entropy, nll
from fundl.losses.ctc import Labels, ctc
from fundl.losses.embeddings import cosine_embedding, triplet
from fundl.losses.likelihood import gaussian_nll, poisson_nll
from fundl.losses.margins import hinge_embedding, margin_ranking, multi_class_margin, multi_label_margin, soft_margin
from fundl.losses.one_by_one import unreduced, without_options
from fundl.losses.probability import binary_cross_entropy, binary_cross_entropy_with_logits, kl_divergence
from fundl.losses.reduction import ELEMENTS, Reduction, ValueAndGrad, of_kind
from fundl.losses.regression import huber, mae, mse
from fundl.tree import describe

Two: TypeAlias = tuple[Tensor, Tensor]
Three: TypeAlias = tuple[Tensor, Tensor, Tensor]

OfTwo: TypeAlias = nn.CosineEmbeddingLoss | nn.GaussianNLLLoss | nn.MarginRankingLoss
"""Losses of two tensors that a model gives."""
OfOne: TypeAlias = (
    nn.BCELoss
    | nn.BCEWithLogitsLoss
    | nn.CrossEntropyLoss
    | nn.HingeEmbeddingLoss
    | nn.HuberLoss
    | nn.KLDivLoss
    | nn.L1Loss
    | nn.MSELoss
    | nn.MultiLabelMarginLoss
    | nn.MultiLabelSoftMarginLoss
    | nn.MultiMarginLoss
    | nn.NLLLoss
    | nn.PoissonNLLLoss
    | nn.SmoothL1Loss
    | nn.SoftMarginLoss
)
"""Losses of one tensor that a model gives, and of one that it should."""

AnyLoss: TypeAlias = "Callable[..., tuple[Tensor, object]]"  # type: ignore[explicit-any]  # of a prediction, target and options


@of_kind(ELEMENTS)
def smooth_l1(prediction: Tensor, target: Tensor, *, delta: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """What torch calls smooth L1: `huber`, divided by where its parabola ends, so that its slope is at most 1."""
    value, grad = huber(prediction, target, delta=delta, reduction=reduction)
    return value / delta, grad / delta


# --- What is whose counterpart -----------------------------------------------------------------------------------------


@attrs.frozen
class _Pair:
    """A module's class, the loss that it computes, and what the module calls each option of the loss."""

    module: type[nn.Module]
    loss: AnyLoss
    names: Mapping[str, str] = attrs.field(factory=dict)


_PAIRS: Final = (
    _Pair(nn.MSELoss, mse),
    _Pair(nn.L1Loss, mae),
    _Pair(nn.HuberLoss, huber, {"delta": "delta"}),
    _Pair(nn.SmoothL1Loss, smooth_l1, {"delta": "beta"}),
    _Pair(nn.KLDivLoss, kl_divergence, {"log_target": "log_target"}),
    _Pair(
        nn.CrossEntropyLoss,
        cross_entropy,
        {"weight": "weight", "ignore_index": "ignore_index", "label_smoothing": "label_smoothing"},
    ),
    _Pair(nn.NLLLoss, nll, {"weight": "weight", "ignore_index": "ignore_index"}),
    _Pair(nn.BCELoss, binary_cross_entropy),
    _Pair(nn.BCEWithLogitsLoss, binary_cross_entropy_with_logits, {"pos_weight": "pos_weight"}),
    _Pair(nn.PoissonNLLLoss, poisson_nll, {"log_input": "log_input", "full": "full", "epsilon": "eps"}),
    _Pair(nn.GaussianNLLLoss, gaussian_nll, {"full": "full", "epsilon": "eps"}),
    _Pair(nn.SoftMarginLoss, soft_margin),
    _Pair(nn.HingeEmbeddingLoss, hinge_embedding, {"margin": "margin"}),
    _Pair(nn.MarginRankingLoss, margin_ranking, {"margin": "margin"}),
    _Pair(nn.CosineEmbeddingLoss, cosine_embedding, {"margin": "margin"}),
    _Pair(nn.MultiMarginLoss, multi_class_margin, {"power": "p", "margin": "margin", "weight": "weight"}),
    _Pair(nn.MultiLabelMarginLoss, multi_label_margin),
    _Pair(nn.TripletMarginLoss, triplet, {"margin": "margin", "swap": "swap"}),
    _Pair(nn.CTCLoss, ctc, {"blank": "blank", "zero_infinity": "zero_infinity"}),
)
_BY_MODULE: Final = {pair.module: pair for pair in _PAIRS}
_BY_LOSS: Final = {pair.loss: pair for pair in _PAIRS}
_REDUCTIONS: Final[Mapping[str, Reduction]] = {"mean": "mean", "sum": "sum", "batchmean": "batch_mean"}


# --- From modules ------------------------------------------------------------------------------------------------------


@overload
def loss_from_torch(module: nn.CTCLoss) -> Loss[Tensor, Labels]: ...
@overload
def loss_from_torch(module: nn.TripletMarginLoss) -> Loss[Three, object]: ...
@overload
def loss_from_torch(module: OfTwo) -> Loss[Two, Tensor]: ...
@overload
def loss_from_torch(module: OfOne) -> Loss[Tensor, Tensor]: ...
def loss_from_torch(module: nn.Module) -> AnyLoss:
    """The loss that computes what a loss module of torch.nn computes, as a function of a prediction and a target.

    It is one of fundl's, with the module's options, and copies of its weights: ``partial(cross_entropy, weight=w)``. With
    ``reduction="none"`` it is the `unreduced` one.

    | torch.nn | fundl | called with |
    | --- | --- | --- |
    | MSELoss, L1Loss, HuberLoss | mse, mae, huber | |
    | SmoothL1Loss | huber / beta; with beta=0 mae | |
    | CrossEntropyLoss, NLLLoss | cross_entropy, nll | |
    | BCELoss, BCEWithLogitsLoss | binary_cross_entropy, binary_cross_entropy_with_logits | |
    | MultiLabelSoftMarginLoss | binary_cross_entropy_with_logits | |
    | KLDivLoss, PoissonNLLLoss, SoftMarginLoss | kl_divergence, poisson_nll, soft_margin | |
    | HingeEmbeddingLoss | hinge_embedding | |
    | GaussianNLLLoss | gaussian_nll | (mean, variance), target |
    | MarginRankingLoss, CosineEmbeddingLoss | margin_ranking, cosine_embedding | (x1, x2), target |
    | TripletMarginLoss | triplet | (anchor, positive, negative), anything |
    | MultiMarginLoss | multi_class_margin | |
    | MultiLabelMarginLoss | multi_label_margin | prediction, labels of yes and no, one for each class |
    | CTCLoss | ctc | logits (B, T, C), (labels, frames) |

    What torch lets broadcast, or has without an axis of the batch, is given here in the prediction's shape. torch adds 1e-6 to
    the differences whose lengths TripletMarginLoss compares, and its mean of CTCLoss divides each loss by its labels first.

    Args:
        module: of torch.nn itself, not of a derived class.

    Raises:
        ConversionError: it has no counterpart, or an option of it; the message says what to write instead. So are weights of
            each element, which are given with the target: ``weighted(binary_cross_entropy)``.

    >>> from fundl.interop import torch_nn
    >>> from torch import nn
    >>> loss = torch_nn.loss_from_torch(nn.CrossEntropyLoss(label_smoothing=0.1))
    >>> loss(torch.zeros(1, 2), torch.tensor([0]))
    (tensor(0.6931), tensor([[-0.4500,  0.4500]]))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"loss_from_torch takes a loss of torch.nn, not {describe(module)}{_called(module)}")
    return converted(module)


def converted(module: nn.Module) -> AnyLoss:
    """The loss of any module, of whose class nothing is known beforehand."""
    place = class_name(module)
    require_plain(module, place)
    with named(place):
        return _loss_of(module)


def _loss_of(module: nn.Module) -> AnyLoss:
    settings: dict[str, object] = {**vars(module), **module._buffers}
    reduction = str(settings.get("reduction"))
    loss, options = _of_settings(module, settings, reduction)
    require(reduction in {"none", *_REDUCTIONS}, f"reduction={reduction!r} is none that torch knows")
    if reduction == "none":
        return unreduced(functools.partial(loss, **options) if options else loss)
    if reduction != "mean":
        options["reduction"] = _REDUCTIONS[reduction]
    return functools.partial(loss, **options) if options else loss


def _of_settings(module: nn.Module, settings: Mapping[str, object], reduction: str) -> tuple[AnyLoss, dict[str, object]]:
    """The loss, and those of its options that are not as by default."""
    if type(module) is nn.MultiLabelSoftMarginLoss:
        _require_no_weight(settings, "binary_cross_entropy_with_logits")
        require(
            reduction == "mean",
            f"reduction={reduction!r} has the mean over the classes all the same: take the losses that"
            " unreduced(binary_cross_entropy_with_logits) gives, and their mean along axis 1",
        )
        return binary_cross_entropy_with_logits, {}
    pair = _BY_MODULE.get(type(module))
    require(pair is not None, f"it has no counterpart{_instead(module)}")
    assert pair is not None  # which a type checker does not see
    if pair.loss is smooth_l1 and not settings["beta"]:
        return mae, {}
    if pair.loss is smooth_l1 and settings["beta"] == 1:
        return huber, {}
    if type(module) in {nn.BCELoss, nn.BCEWithLogitsLoss}:
        _require_no_weight(settings, name_of(pair.loss))
    if isinstance(module, nn.TripletMarginLoss):
        require(module.p == 2, f"p={module.p}, but triplet measures distances by the Euclidean norm, p=2")
    require(
        not (pair.loss is ctc and reduction == "mean"),
        "reduction='mean' divides each loss by the number of its labels first, which ctc does not: set it to 'sum', and divide;"
        " or write fundl.ctc, whose mean is over all labels",
    )
    defaults = inspect.signature(pair.loss).parameters
    values = {ours: settings[theirs] for ours, theirs in pair.names.items()}
    return pair.loss, {
        name: copied(value) if isinstance(value, Tensor) else value
        for name, value in values.items()
        if isinstance(value, Tensor) or value != defaults[name].default
    }


def _require_no_weight(settings: Mapping[str, object], loss: str) -> None:
    require(
        settings.get("weight") is None,
        f"it has a weight of each element, which is given with the target: weighted({loss})(prediction, (target, weight)),"
        " whose mean divides by the sum of the weights; to divide by their number, as torch does, take reduction='sum', and"
        " divide",
    )


def _called(given: object) -> str:
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f": write loss_from_torch(nn.{given.__name__}())"
    return ", and a function is taken by fundl.from_function" if callable(given) else ""


def _instead(module: nn.Module) -> str:
    """What to write for modules that have none."""
    if type(module).__name__ == "LinearCrossEntropyLoss":  # it came with torch 2.13
        return (
            ": it has parameters, which a model holds: write deferred(linear(...)) as its last layer, and chunked_cross_entropy"
        )
    bases = [kind.__name__ for kind in type(module).__mro__[1:] if kind in _BY_MODULE]
    derived = f" it is derived from nn.{bases[0]}, and may compute something else;" if bases else ""
    return (
        f":{derived} write a loss, a function that gives value and gradient, or from_function(...) of one that gives the value"
    )


# --- To modules --------------------------------------------------------------------------------------------------------


def loss_to_torch(loss: Callable[[Never, Never], tuple[Tensor, object]]) -> nn.Module:
    """The loss module of torch.nn that computes what a loss of fundl's computes: what `loss_from_torch` makes, and back.

    It is called as torch has it: `gaussian_nll`'s module with (mean, target, variance), those of pairs and triplets with a
    tensor after the other, that of `ctc` with log-probabilities (T, B, C), and that of `multi_label_margin` with the indices of
    the labels.

    Args:
        loss: one of fundl's, or a `functools.partial` of one.

    Raises:
        ConversionError: torch.nn has no such loss, or no such option.

    >>> from functools import partial
    >>> from fundl import huber
    >>> from fundl.interop import torch_nn
    >>> torch_nn.loss_to_torch(partial(huber, delta=0.5)).delta
    0.5
    """
    require_loss(loss)
    function, options = without_options(loss)
    with named(name_of(loss)):
        pair = _BY_LOSS.get(cast("AnyLoss", function)) if is_function(function) else None  # a function can be called
        require(
            pair is not None,
            "torch.nn has no such loss: write a function of torch's; of unreduced(loss), convert the loss, and set the module's"
            " reduction to 'none'; of weighted(loss), too, and weigh what it gives",
        )
        assert pair is not None  # which a type checker does not see
        return _module_of(pair, options)


def _module_of(pair: _Pair, options: dict[str, object]) -> nn.Module:
    kind, given = pair.module, dict(options)
    reduction = given.pop("reduction", "mean")
    require(
        reduction != "batch_mean" or kind is nn.KLDivLoss,
        f"reduction='batch_mean', which nn.{kind.__name__} does not have: take 'sum', and divide by the size of the batch",
    )
    require(
        not (pair.loss is ctc and reduction == "mean"),
        "its mean is over all labels, while nn.CTCLoss divides each loss by the number of its own first: take reduction='sum'",
    )
    theirs = {text: word for word, text in _REDUCTIONS.items()}
    converted: dict[str, object] = {"reduction": theirs[cast("Reduction", reduction)]}
    for name, parameter in inspect.signature(pair.loss).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name == "reduction":
            continue
        value = given.get(name, parameter.default)
        if name in pair.names:
            converted[pair.names[name]] = _as_setting(name, value)
        else:
            require(
                isinstance(value, type(parameter.default)) and value == parameter.default,
                f"{name}={value!r}, which nn.{kind.__name__} has no option for: leave it at {parameter.default!r}",
            )
    return kind(**converted)


def _as_setting(name: str, value: object) -> object:
    """An option as a module has it: weights are tensors, of its own."""
    if isinstance(value, Tensor):
        return copied(value)
    return torch.tensor(value) if name == "pos_weight" and value is not None else value
