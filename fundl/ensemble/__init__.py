"""Ensembles: many runs at once, each with a key of its own, as one batched computation.

In an ensemble of R runs everything has a first axis of size R: parameters, keys, batches, losses. The functions here are
their namesakes for one run, for R of them, and give what R separate runs with these keys give:

    keys = split(key(0), 50)
    models = ensemble.initialize(keys, model)  # for a model of type P, an Ensemble[P]
    state = ensemble.train_state(keys, models, optimizer)
    step = ensemble.train_step(mse, optimizer)
    data = ensemble.share((points, labels), 50)
    state, histories = ensemble.fit(step, state, lambda keys: ensemble.minibatches(keys, data, 10), epochs=100)
    accuracies = [history[-1].train.metrics["accuracy"] for history in histories]
    first, *others = ensemble.unstack(state.model)

An `Ensemble` is a layer, so what takes a model takes one too: `apply`, `vjp`, `save`. And `each` makes of any pure function
of trees one that does the same for R runs.

Initial values, the order of batches and what dropout drops agree with those of separate runs to the bit. All else is
computed for all runs by one kernel, which may round a last bit differently: kernels do, by where in a tensor a number stands.
"""

import types
import typing

from fundl.ensemble.batches import RunMinibatches as RunMinibatches, minibatches as minibatches
from fundl.ensemble.models import Ensemble as Ensemble, initialize as initialize, stack as stack, unstack as unstack
from fundl.ensemble.training import fit as fit, train_state as train_state, train_step as train_step
from fundl.runs import each as each, share as share

if not typing.TYPE_CHECKING:  # a checker takes what is imported as itself
    __all__ = sorted(
        name for name, value in globals().items() if not name.startswith("_") and not isinstance(value, types.ModuleType)
    )

    def __dir__():
        return __all__
