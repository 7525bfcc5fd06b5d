"""Where a NaN or an infinity arises: in which layer, forward or backward, and in which field."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, cast

import torch
from torch import Tensor

from fundl import random, tree
from fundl._common import suggestions
from fundl._common.checks import require_loss, require_model
from fundl._common.keys import require_key
from fundl._common.modes import no_grad
from fundl._common.running import Pass
from fundl._common.suggestions import with_suggestions
from fundl.ensemble.models import Ensemble
from fundl.groups import Group
from fundl.layer import Layer, Loss, Model, P, Prediction, Target
from fundl.layers.dropout import rekey
from fundl.optim.loss_scale import LossScaleState, scale_loss
from fundl.random import Key
from fundl.runs import MANY, ONE, count_runs
from fundl.training._over import Shares, shares_of
from fundl.training.step import S, TrainState
from fundl.tree import Record, describe
from fundl.weights import count_along


@with_suggestions
def check_finite(
    model: Model | TrainState[P, S],
    x: object,
    target: Target,
    loss: Loss[Prediction, Target],
    *,
    key: Key | None = None,
    over: Group | None = None,
) -> None:
    """Raise a FloatingPointError that says where a NaN or an infinity arises first, if there is one.

    It looks at x, the target, and the model's tensors; then, as a training step goes through them, at what each layer is given
    and gives, forward; at the loss and its gradient; and at the gradients that each layer is given and gives, backward. Layers
    inside of others are looked at as well, also where they compute in other dtypes than they are kept in.

    Of a run's state it looks at what its next step does: stochastic layers draw as they do there, and where a
    `dynamic_loss_scale` scales the loss' gradient, it is scaled. Of an ensemble, or the state of one, it looks at one run after
    the other.

    Of processes that make a step together each looks at its own rows, and all of them raise the same error if one finds
    something, so that none is left waiting. A BatchNorm then normalises with the statistics of the own rows, not with those of
    the whole batch.

    Args:
        model: a layer or a nested tuple of layers, with values; or the state of a run, such as that which `last_good` gives.
        x: its input: a tensor, or any tree.
        target: as the loss takes it.
        loss: as `train_step` takes it.
        key: what the stochastic layers of a model draw from. None for layers that draw nothing, and for a state, which has one.
        over: the processes that make a step together, as in ``train_step(..., over=group)``; all of them ask at the same time.

    Raises:
        FloatingPointError: there is one; the message has the layer's place in the model, as in ``model[2].weight``, and the
            process, if there are several.
        TypeError: the model or the loss is none.
        ValueError: layers are divided among processes, see `distributed.shard` and `distributed.stages`.
        RuntimeError: another process raised another error.

    >>> import torch
    >>> from fundl import Linear, ReLU, check_finite, mse
    >>> model = Linear(torch.tensor([[3e38, 3e38]]), bias=None), ReLU()
    >>> check_finite(model, torch.ones(1, 2), torch.zeros(1, 1), mse)
    Traceback (most recent call last):
    FloatingPointError: forward of model[0], Linear(weight=float32[1, 2], bias=None): its output is inf (1 of 1 numbers)
    """
    require_loss(loss)
    if tree.holds(tree.is_divided, model.model if isinstance(model, TrainState) else model):
        raise ValueError(
            "layers are divided among processes, and one that finds something wrong would leave the others waiting: look at the"
            " whole in each, check_finite(unshard(unstage(model)), x, target, loss, over=group), with unshard and unstage of"
            " fundl.distributed"
        )
    if over is not None and tree.holds(_is_ensemble, model):
        raise ValueError("an ensemble is trained by one process, which looks at it alone: leave out over=")
    if (shares := shares_of(over, loss)) is None:
        _check_all(model, x, target, loss, key, None)
        return
    talk, found = shares.group.talk(), ""
    try:
        if count_along(x, 0):  # a small last batch may have no rows for some process
            _check_all(model, x, target, loss, key, shares)
    except FloatingPointError as error:
        found = f"process {shares.group.rank}: {error}"
    except BaseException:
        talk.leave()
        raise
    if said := talk.told(found, lambda texts: next(filter(None, texts), "")):
        raise FloatingPointError(said)


def _check_all(  # noqa: PLR0917  # all that a step goes through
    model: Model | TrainState[P, S],
    x: object,
    target: Target,
    loss: Loss[Prediction, Target],
    key: Key | None,
    shares: Shares[Prediction, Target] | None,
) -> None:
    """Look at one run, or at one after the other, of the rows of this process."""
    scale: Tensor | None = None

    def own(key: Key) -> Key:
        return key if shares is None else shares.key(key, x)

    if isinstance(model, TrainState):
        state, model = model, model.model
        runs = MANY if isinstance(model, Ensemble) else ONE
        key = runs.each(lambda key: random.fold_in(key, state.step))(own(state.key)) if key is None else own(key)
        scale = next((one.scale for one in tree.records(state.optimizer) if isinstance(one, LossScaleState)), None)
    elif key is not None:
        key = own(key)
    require_model(model)
    if not isinstance(model, Ensemble):
        _check(model, x, target, loss, key, scale)
        return
    for name, given in ("x", x), ("the target", target):
        if count_runs(given, name) != model.runs:
            raise ValueError(f"the ensemble has {model.runs} runs, but {name} is of {count_runs(given, name)}")
    for run, of_run in enumerate(MANY.apart((model.models, x, target, key, scale))):
        try:
            _check(*of_run[:3], loss, *of_run[3:])
        except FloatingPointError as error:
            raise FloatingPointError(f"run {run}: {error}") from None


def _is_ensemble(cls: type[Record]) -> bool:
    return issubclass(cls, Ensemble)


def _check(  # noqa: PLR0917  # all that a step goes through
    model: Model, x: object, target: Target, loss: Loss[Prediction, Target], key: Key | None, scale: Tensor | None
) -> None:
    """Look at one run."""
    for name, given in ("x", x), ("the target", target), ("model", model):
        if found := _first(given):
            raise FloatingPointError(f"{name}{found} before anything is computed")
    if key is not None:
        require_key(key)
        model = rekey(model, key)
    with no_grad():
        _pass(model, x, target, loss)
        if scale is not None:
            try:
                _pass(model, x, target, scale_loss(loss, scale))
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error}. Only the scale of dynamic_loss_scale, {scale.item():g}, makes it so: such a step is left out,"
                    " and the next tried at a smaller scale"
                ) from None


def _pass(model: Model, x: object, target: Target, loss: Loss[Prediction, Target]) -> None:
    """Look at a pass through a model, forward and backward."""
    with _told():
        ran = Pass(model, x)
    prediction = cast("Prediction", ran.output)  # only running tells what it gives: the loss says what it is for
    value = ran.differentiate(loss, prediction, target)
    name, given = suggestions.name_of(loss), f"of a prediction that is finite, {_range(prediction)}"
    if found := _first(value):
        raise FloatingPointError(f"{name}: the loss{found}, {given}")
    if found := _first(ran.grad):
        raise FloatingPointError(f"{name}: the gradient with respect to the prediction{found}, {given}")
    with _told():
        ran.backward_params()


# Layers of layers run what is inside in ways of their own: cast, folded, sliced, in an order that they choose. So no walk from
# outside sees each layer. The interpreter does: it tells a profile of each call, and of what it returns.


class _NotFiniteError(FloatingPointError):
    """Raised where a layer begins or ends; the notes that it gets on its way out say where in the model that is."""

    def __init__(self, name: str, layer: object, said: str) -> None:
        super().__init__(said)
        self.name, self.layer, self.said = name, layer, said


@contextmanager
def _told() -> Iterator[None]:
    """Look at all that layers are given and give meanwhile, and raise an error that says where something is not finite."""
    before = sys.getprofile()
    sys.setprofile(_look)
    try:
        yield
    except _NotFiniteError as error:
        paths: list[str] = [note.path for note in getattr(error, "__notes__", ()) if hasattr(note, "path")]
        raise FloatingPointError(f"{error.name} of model{''.join(paths[-1:])}, {describe(error.layer)}: {error.said}") from None
    finally:
        sys.setprofile(before)


_BACKWARD: Final = frozenset({"backward", "backward_params", "backward_input"})


def _look(frame: FrameType, event: str, result: object) -> None:
    """What the interpreter calls as a function begins and ends."""
    name, code = frame.f_code.co_name, frame.f_code
    if not (name == "forward" or name in _BACKWARD) or code.co_argcount < 2 or event not in {"call", "return"}:
        return
    layer: object = frame.f_locals.get(code.co_varnames[0])
    if not isinstance(layer, Layer):
        return
    if event == "return":
        said = _given_back(name, result)
    elif found := _first(layer):  # it was finite as it was given: the layer around has made another of it
        said = f"its {found.removeprefix('.')}, as the layer around it hands it on"
    elif found := _first(frame.f_locals.get(code.co_varnames[code.co_argcount - 1])):
        said = f"its {'input' if name == 'forward' else 'grad'}{found}, as the layer around it hands it on"
    else:
        said = ""
    if said:
        raise _NotFiniteError(name, layer, said)


def _given_back(name: str, result: object) -> str:
    """What is not finite of that which a layer gives; "" also if it gives nothing, since an error came up in it."""
    if name == "forward":
        found = _first(result[0]) if isinstance(result, tuple) else ""
        return found and f"its output{found}"
    grads = result[0] if name == "backward" and isinstance(result, tuple) else result
    grad_x = result[-1] if name == "backward" and isinstance(result, tuple) else result
    if name != "backward_input" and (found := _first(grads)):
        return f"the gradient of {found.removeprefix('.')}"
    found = "" if name == "backward_params" else _first(grad_x)
    return found and f"the gradient with respect to its input{found}"


def _first(value: object) -> str:
    """The place of the first tensor of a tree that is not finite, and what it is; "" if all are."""
    if isinstance(value, Tensor):
        said = _said(value)
        return said and f" is {said}"
    leaves, _ = tree.flatten(value)
    for path, leaf in zip(tree.paths(value), leaves, strict=True):
        if isinstance(leaf, Tensor) and (said := _said(leaf)):
            return f"{path} is {said}"
    return ""


def _said(tensor: Tensor) -> str:
    """What is not finite in a tensor; "" if all is, if it holds no such numbers, or if nobody can see them, as within vmap."""
    if not tensor.dtype.is_floating_point or tensor.is_meta:
        return ""
    try:
        wrong = tensor[~tensor.isfinite()]
    except RuntimeError:
        return ""
    if not wrong.numel():
        return ""
    what = "nan" if wrong.isnan().any() else "inf" if (wrong > 0).any() else "-inf"
    end = torch.finfo(tensor.dtype).max
    ends = f"; {str(tensor.dtype).removeprefix('torch.')} ends at {end:g}" if what != "nan" and end < 1e30 else ""
    return f"{what} ({wrong.numel()} of {tensor.numel()} numbers{ends})"


def _range(prediction: object) -> str:
    numbers = [leaf for leaf in tree.leaves(prediction) if leaf.is_floating_point() and leaf.numel()]
    if not numbers:
        return "of no numbers"
    return f"from {min(float(leaf.min()) for leaf in numbers):g} to {max(float(leaf.max()) for leaf in numbers):g}"
