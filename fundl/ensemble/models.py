"""Many models as one layer, and back."""

from collections.abc import Sequence
from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import require_model
from fundl._common.keys import require_key
from fundl._common.modes import no_grad
from fundl._common.running import run_forward
from fundl._common.suggestions import with_suggestions
from fundl.ensemble._layers import as_models, batched
from fundl.initialization import initialize as initialize_one
from fundl.layer import Model, P
from fundl.layers._inside import Around
from fundl.runs import each
from fundl.shapes import AnyShape, Shape, expect, of_model
from fundl.tree import describe


@final
@attrs.frozen(eq=False)
class Ensemble(Around[None], Generic[P]):
    """R models of one structure as one layer: y[r] = f_r(x[r]) for the runs r = 0, ..., R - 1.

    Its vjp is that of each run: grads[r], grad_x[r] = vjp(f_r, x[r], grad[r]).

    Made by `ensemble.initialize` or `stack`; `unstack` gives the models back. What looks at the shapes of parameters, or at
    all of them together, must know of the runs: draw new ones by `ensemble.initialize`, train by `ensemble.train_step`.

    Args:
        models: a model whose tensors have a first axis of size R: ``ensemble.models[0].weight`` of shape (R, out, in), say.

    Shape:
        (R, ...) to (R, ...), as each of the models has it behind the first axis

    Residuals:
        Those of the models.

    Raises:
        ValueError: the input's first axis is not of size R.

    >>> from fundl import Linear, apply, ensemble
    >>> double, triple = (Linear(weight=torch.tensor([[factor]]), bias=None) for factor in (2.0, 3.0))
    >>> apply(ensemble.stack([double, triple]), torch.ones(2, 1, 1))
    tensor([[[2.]],
    <BLANKLINE>
            [[3.]]])
    """

    takes_integers = True  # if the models do

    models: P

    @property
    def runs(self) -> int:
        """R, how many models there are."""
        return tree.leaves(self.models)[0].shape[0]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        output, residuals = run_forward(self._model(), x)
        return cast("Tensor", output), (residuals, None)  # a model of tensors predicts tensors

    @override
    def _model(self, own: None = None) -> Model:
        return batched(self.models)

    @override
    def _gradient(self, own: None, grads: object) -> Self:
        return self.gradient(as_models(self.models, grads))

    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        runs, *of_run = shape.leading(1)
        expect("runs", runs, self.runs)
        return Shape(self.runs, *of_model(Shape(*of_run), unstack(self)[0]).sizes)


@with_suggestions
def initialize(
    keys: Tensor, model: P, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Ensemble[P]:
    """An ensemble of one model, with new parameters for each run: those of `initialize` with the run's key.

    Args:
        keys: one for each run, such as ``split(key(0), 50)``.
        model: a layer or a nested tuple of layers.
        device, dtype: of the parameters, as for `initialize`.

    Shape:
        keys (R, 2)

    Raises:
        TypeError: the model cannot be initialised, or `keys` are not keys.
        ValueError: `keys` are not one or more keys, or the model has no tensors.

    >>> from fundl import ReLU, compose, ensemble, key, linear, split
    >>> models = ensemble.initialize(split(key(0), 50), compose(linear(2, 25), ReLU(), linear(25, 1)))
    >>> models.runs, models.models[0]
    (50, Linear(weight=float32[50, 25, 2], bias=float32[50, 25]))
    """
    require_keys(keys)
    require_model(model)
    _require_tensors(model)
    with no_grad():
        models = each(lambda key: initialize_one(key, model, device=device, dtype=dtype))(keys)
        return Ensemble(tree.map(torch.Tensor.contiguous, models))


@with_suggestions
def stack(models: Sequence[P]) -> Ensemble[P]:
    """Models of one structure as an ensemble.

    Args:
        models: R of them, at least 1.

    Raises:
        ValueError: there is no model, the models have no tensors, or these are of different shapes or dtypes.
        TypeError: the models are of different structures.
    """
    if not isinstance(models, Sequence):
        raise TypeError(f"ensemble.stack takes models in a list, [first, second], not {describe(models)}")
    if not models:
        raise ValueError("an ensemble needs at least 1 model, but here is none")
    _require_tensors(models[0])
    for place, model in enumerate(models):
        tree.require_same_structure(models[0], model, names=("model 0", f"model {place}"))
        for path, first, other in zip(tree.paths(model), tree.flatten(models[0])[0], tree.flatten(model)[0], strict=True):
            if describe(first) != describe(other):
                raise ValueError(
                    f"the models of an ensemble are alike, but at {path or 'its root'} model 0 has {describe(first)}, and"
                    f" model {place} has {describe(other)}"
                )
    with no_grad():
        return Ensemble(tree.stack(models))


@with_suggestions
def unstack(models: Ensemble[P]) -> list[P]:
    """The models of an ensemble, one by one: to save one, to evaluate each.

    Their tensors are views of those of the ensemble.

    >>> from fundl import ensemble, key, linear, split
    >>> ensemble.unstack(ensemble.initialize(split(key(0), 2), linear(2, 1)))
    [Linear(weight=float32[1, 2], bias=float32[1]), Linear(weight=float32[1, 2], bias=float32[1])]
    """
    if not isinstance(models, Ensemble):
        raise TypeError(f"an ensemble is what ensemble.initialize or ensemble.stack makes, not {describe(models)}")
    return tree.unstack(models.models, models.runs)


def require_keys(keys: Tensor) -> int:
    """Raise unless there is a key for each of one or more runs; how many there are."""
    if not isinstance(keys, Tensor):
        raise TypeError(f"the keys of an ensemble are a tensor, as split(key(0), runs) makes it, not {describe(keys)}")
    if keys.ndim != 2 or not keys.shape[0]:
        raise ValueError(
            "an ensemble needs a key for each of 1 run or more, a tensor of shape (runs, 2) as split(key(0), runs) makes it,"
            f" not one of shape {tuple(keys.shape)}"
        )
    require_key(keys[0])
    return keys.shape[0]


def _require_tensors(model: Model) -> None:
    if tree.holds(tree.is_divided, model):
        raise ValueError(
            "layers whose parameters are divided among processes are part of no ensemble: take them out by unshard"
        )
    if not tree.leaves(model):
        raise ValueError(f"the model has no parameters: all runs would be the same, {describe(model)}")
