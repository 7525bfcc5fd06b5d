"""thinc, whose layers have gradients written by hand, as fundl's have, on numpy."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import numpy as np
from thinc.api import SGD, Adam, Linear, Model, Optimizer, Relu, chain

from benchmarks.cases import Case, Floats, Integers
from benchmarks.peers import Run

_TINY: Final = 1e-30


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    model, optimizer = _model_of(case), _optimizer_of(case)
    x, target = case.batches()
    inputs = [np.asarray(batch, np.float32) for batch in x]
    loss_of = _mse if case.mean_squared else _cross_entropy
    data = [*zip(inputs, target, strict=True)]

    def run(calls: int) -> float:
        loss = 0.0
        for _ in range(calls):
            for batch, wanted in data:
                prediction, backward = model.begin_update(batch)
                loss, grad = loss_of(prediction, wanted)
                backward(grad)
                model.finish_update(optimizer)
        return loss

    return {"": run}


def _model_of(case: Case) -> Model[Floats, Floats]:
    """The network with the first parameters."""
    *inner, last = pairwise(case.sizes)
    layers = [*(Relu(outputs, inputs) for inputs, outputs in inner), Linear(last[1], last[0])]
    weights = iter(case.parameters())
    for layer in layers:
        layer.initialize()
        layer.set_param("W", next(weights))
        layer.set_param("b", next(weights))
    return chain(*layers)


def _optimizer_of(case: Case) -> Optimizer:
    if case.optimizer == "sgd":
        return SGD(case.rate, grad_clip=0.0, use_averages=False)
    return Adam(case.rate, grad_clip=0.0, use_averages=False)


def _mse(prediction: Floats, target: Floats | Integers) -> tuple[float, Floats]:
    difference = prediction - target.astype(np.float32, copy=False)
    return float(np.mean(difference**2)), difference * np.float32(2 / difference.size)


def _cross_entropy(prediction: Floats, target: Floats | Integers) -> tuple[float, Floats]:
    rows, chosen = np.arange(len(prediction)), target.astype(np.int64, copy=False)
    powers = np.exp(prediction - prediction.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    loss = -float(np.mean(np.log(shares[rows, chosen] + _TINY)))
    shares[rows, chosen] -= 1
    return loss, shares / np.float32(len(prediction))
