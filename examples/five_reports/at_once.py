"""All runs of a set-up at once, as one ensemble: from the same data, parameters and batches as one after the other."""

import os
import time

import attrs
import torch
from torch import Tensor

import fundl
from five_reports.engine import accuracy_of, inputs_of, loss_of, optimizer_of, start_of, targets_of
from five_reports.setups import Setup
from fundl import ensemble


@attrs.frozen
class AtOnce:
    """Where all runs ended, and how long they took.

    Args:
        accuracies: on the test points of each run, from 0 to 1.
        seconds: for everything, the initialisation as well.
    """

    accuracies: tuple[float, ...]
    seconds: float


def train_at_once(setup: Setup, seed: int, runs: int) -> AtOnce:
    """Train an ensemble of some runs, each from its start, on all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return _train(setup, seed, runs)
    finally:
        torch.set_num_threads(threads)


def _train(setup: Setup, seed: int, runs: int) -> AtOnce:
    starts = [start_of(seed, run) for run in range(runs)]
    began = time.perf_counter()
    models = ensemble.stack([fundl.initialize(start.model_key, setup.model) for start in starts])
    pairs = [inputs_of(setup, start) for start in starts]
    train, test = (torch.stack(points) for points in zip(*pairs, strict=True))
    target = torch.stack([targets_of(setup, start.train_labels, train.dtype) for start in starts])
    optimizer = optimizer_of(setup)
    step = ensemble.train_step(loss_of(setup), optimizer)
    state = ensemble.train_state(torch.stack([start.noise_key for start in starts]), models, optimizer)
    order_keys = torch.stack([start.order_key for start in starts])
    for epoch in range(setup.epochs):
        keys = keys_of(order_keys, epoch) if setup.is_shuffled else None
        batches = ensemble.minibatches(keys, (train, target), setup.batch_size)
        state, _ = ensemble.fit(step, state, batches, epochs=1, progress=False)
    seconds = time.perf_counter() - began
    predictions = fundl.apply(state.model, test)
    accuracies = tuple(
        float(accuracy_of(setup, prediction, targets_of(setup, start.test_labels, train.dtype)))
        for prediction, start in zip(predictions, starts, strict=True)
    )
    return AtOnce(accuracies, seconds)


def keys_of(order_keys: Tensor, epoch: int) -> Tensor:
    """The keys of an epoch's order, of all runs."""

    def of_one(key: Tensor) -> Tensor:
        return fundl.fold_in(key, epoch)

    return ensemble.each(of_one)(order_keys)
