"""Inputs, targets and predictions of any form: pairs, dicts, records, masked batches.

This is what a user writes, without an Any, a cast or an ignore: mypy checks it with and without fundl's plugin, pyright as well
(see test_pyright.py), and each model learns.
"""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AdamChainState,
    Batches,
    Epoch,
    Layer,
    Linear,
    Loss,
    Masked,
    MeanOfPositions,
    Metric,
    Model,
    Multiply,
    Record,
    Step,
    Tanh,
    TrainState,
    accuracy,
    adam,
    backward,
    compose,
    cross_entropy,
    disk,
    ensemble,
    evaluate,
    fit,
    forward,
    from_masked,
    initialize,
    key,
    last_good,
    linear,
    minibatches,
    mse,
    pipe,
    random,
    sgd,
    shared,
    split,
    train_state,
    train_step,
    transformer_block,
)

P = TypeVar("P", bound=Model)
X = TypeVar("X")
Target = TypeVar("Target")
Prediction = TypeVar("Prediction")

OPTIMIZER = adam(0.02)
POINTS, LABELS = disk(key(0), 60)


@attrs.frozen
class Task(Generic[P, X, Target, Prediction]):
    """What is learned, of which types."""

    model: P
    loss: Loss[Prediction, Target]
    batches: Batches[X, Target]
    data: Sequence[tuple[X, Target]]
    metric: Metric[Prediction, Target]

    def start(self) -> tuple[Step[P, AdamChainState, X, Target, Prediction], TrainState[P, AdamChainState]]:
        return train_step(self.loss, OPTIMIZER), train_state(key(2), initialize(key(1), self.model), OPTIMIZER)

    def learn_together(self) -> tuple[list[Epoch], list[Epoch]]:
        """The last epochs of two runs as an ensemble, and by themselves."""
        keys, optimizer = split(key(2), 2), sgd(0.05)
        models = ensemble.initialize(split(key(1), 2), self.model)
        state = ensemble.train_state(keys, models, optimizer)
        data = [ensemble.share(batch, 2) for batch in self.data]
        step = ensemble.train_step(self.loss, optimizer)
        _, together = ensemble.fit(step, state, data, epochs=3, metrics={"accuracy": self.metric}, progress=False)
        alone: list[Epoch] = []
        for run, model in enumerate(ensemble.unstack(models)):
            of_run = train_state(keys[run], model, optimizer)
            of_step = train_step(self.loss, optimizer)
            _, history = fit(of_step, of_run, self.data, epochs=3, metrics={"accuracy": self.metric}, progress=False)
            alone.append(history[-1])
        return [history[-1] for history in together], alone

    def learn(self, *, compiled: bool) -> tuple[float, float, float]:
        """The loss before, after, and as it was in the last epoch."""
        step, state = self.start()
        before = evaluate(self.loss, state.model, self.data, metrics={"accuracy": self.metric})
        state, history = fit(
            step,
            state,
            self.batches,
            epochs=15,
            metrics={"accuracy": self.metric},
            evaluate=lambda model: evaluate(self.loss, model, self.data, metrics={"accuracy": self.metric}),
            compile=compiled,
            progress=False,
        )
        state, report = step(state, self.data[0])
        prediction: Prediction = report.prediction
        number: Tensor = self.metric(prediction, self.data[0][1])
        assert number.ndim == 0
        same, none = last_good(ValueError(), state)
        assert same is state
        assert none == ()
        assert history[-1].test is not None
        return before.loss, history[-1].test.loss, history[-1].train.metrics["accuracy"]


# --- A variational autoencoder: a pair comes out -----------------------------------------------------------------------


@attrs.frozen(eq=False)
class VAE(Layer[tuple[object, object, Tensor], Tensor, tuple[Tensor, Tensor]]):
    """From an example to what is decoded of a random code for it, and the code's mean and logarithm of the variance."""

    encoder: tuple[Linear, Tanh, Linear]
    decoder: tuple[Linear, Tanh, Linear]

    @override
    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[object, object, Tensor]]:
        code, encoding = forward(self.encoder, x)
        mean, log_var = code.chunk(2, 1)
        noise = random.normal(key(5), tuple(mean.shape)) * (log_var / 2).exp()
        y, decoding = forward(self.decoder, mean + noise)
        return (y, code), (encoding, decoding, noise)

    @override
    def backward(self, residuals: tuple[object, object, Tensor], grad: tuple[Tensor, Tensor]) -> tuple["VAE", Tensor]:
        encoding, decoding, noise = residuals
        decoder, grad_z = backward(self.decoder, decoding, grad[0])
        grad_code = grad[1] + torch.cat([grad_z, grad_z * noise / 2], 1)
        encoder, grad_x = backward(self.encoder, encoding, grad_code)
        return VAE(encoder, decoder), grad_x


def evidence(prediction: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The squared error of what was decoded, and a part of the divergence of the code from a normal distribution."""
    value, grad = mse(prediction[0], target)
    mean, log_var = prediction[1].chunk(2, 1)
    share = 0.01 / len(target)
    divergence = share * (mean.square() + log_var.exp() - log_var - 1).sum() / 2
    return value + divergence, (grad, share * torch.cat([mean, (log_var.exp() - 1) / 2], 1))


def decoded(prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return (prediction[0] - target).abs().mean()


def autoencoder() -> Task[VAE, Tensor, Tensor, tuple[Tensor, Tensor]]:
    x = torch.cat([POINTS, POINTS.square()], 1)
    model = VAE((linear(4, 16), Tanh(), linear(16, 4)), (linear(2, 16), Tanh(), linear(16, 4)))
    return Task(model, evidence, lambda key: minibatches(key, (x, x), 16), [(x, x)], decoded)


# --- A siamese network: a pair goes in ---------------------------------------------------------------------------------


def far_off(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs().mean()


def siamese() -> Task[Model, tuple[Tensor, Tensor], Tensor, Tensor]:
    model: Model = pipe(shared(linear(2, 16), Tanh()), Multiply(), linear(16, 1))
    others = POINTS.flip(0)
    data = (POINTS, others), (POINTS * others).sum(1, keepdim=True)
    return Task(model, mse, lambda key: minibatches(key, data, 16), [data], far_off)


# --- Two heads: dicts come out, and are aimed at -----------------------------------------------------------------------


@attrs.frozen(eq=False)
class Heads(Layer[Tensor, Tensor, dict[str, Tensor]]):
    """Where a point is, and whether it is in the disk."""

    radius: Linear
    inside: Linear

    @override
    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"radius": forward(self.radius, x)[0], "inside": forward(self.inside, x)[0]}, x

    @override
    def backward(self, residuals: Tensor, grad: dict[str, Tensor]) -> tuple["Heads", Tensor]:
        radius, grad_radius = backward(self.radius, residuals, grad["radius"])
        inside, grad_inside = backward(self.inside, residuals, grad["inside"])
        return Heads(radius, inside), grad_radius + grad_inside


def both_tasks(prediction: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    far, grad_far = mse(prediction["radius"], target["radius"])
    wrong, grad_wrong = cross_entropy(prediction["inside"], target["inside"])
    return far + wrong, {"radius": grad_far, "inside": grad_wrong}


def inside_right(prediction: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    return accuracy(prediction["inside"], target["inside"])


def two_heads() -> Task[tuple[Linear, Tanh, Heads], Tensor, dict[str, Tensor], dict[str, Tensor]]:
    model = compose(linear(2, 16), Tanh(), Heads(linear(16, 1), linear(16, 2)))
    target = {"radius": (POINTS - 0.5).square().sum(1, keepdim=True).sqrt(), "inside": LABELS}
    return Task(model, both_tasks, [*minibatches(None, (POINTS, target), 16)], [(POINTS, target)], inside_right)


# --- A transformer on masked batches of several lengths ----------------------------------------------------------------


def sequences(length: int, seed: int) -> tuple[Masked, Tensor]:
    """Sequences of numbers, and whether their mean is above 0."""
    values = random.normal(key(seed), (12, length, 1))
    mask = torch.arange(length) < 1 + random.uniform(key(seed + 100), (12, 1)) * (length - 1)
    mean = (values.squeeze(2) * mask).sum(1) / mask.sum(1)
    return Masked(values, mask), (mean > 0).to(torch.int64)


def transformer() -> Task[Model, Masked, Tensor, Tensor]:
    model: Model = from_masked(linear(1, 8), transformer_block(8, 2), MeanOfPositions(), linear(8, 2))
    batches = [sequences(length, seed) for seed, length in enumerate((7, 5, 7, 5))]
    return Task(model, cross_entropy, batches, batches, accuracy)


# --- A record goes in, and a record comes out --------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Parts(Record):
    """A point by its coordinates, and what else is known of it."""

    across: Tensor
    up: Tensor
    name: str = "point"


@attrs.frozen(eq=False)
class Turn(Layer[tuple[Tensor, Tensor], Parts, Parts]):
    """Both coordinates times a factor each."""

    factors: Tensor

    @override
    def forward(self, x: Parts) -> tuple[Parts, tuple[Tensor, Tensor]]:
        first, second = self.factors.unbind()
        return attrs.evolve(x, across=first * x.up, up=second * x.across), (x.across, x.up)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor], grad: Parts) -> tuple["Turn", Parts]:
        across, up = residuals
        first, second = self.factors.unbind()
        factors = torch.stack([(grad.across * up).sum(), (grad.up * across).sum()])
        return Turn(factors), attrs.evolve(grad, across=second * grad.up, up=first * grad.across)


def apart(prediction: Parts, target: Parts) -> tuple[Tensor, Parts]:
    across, grad_across = mse(prediction.across, target.across)
    up, grad_up = mse(prediction.up, target.up)
    return across + up, attrs.evolve(prediction, across=grad_across, up=grad_up)


def distance(prediction: Parts, target: Parts) -> Tensor:
    return ((prediction.across - target.across).square() + (prediction.up - target.up).square()).mean()


def turning() -> Task[Turn, Parts, Parts, Parts]:
    x, target = Parts(POINTS[:, 0], POINTS[:, 1]), Parts(POINTS[:, 1] * 1.5, POINTS[:, 0] * -0.5)
    return Task(Turn(torch.ones(2)), apart, lambda key: minibatches(key, (x, target), 16), [(x, target)], distance)


# --- They learn --------------------------------------------------------------------------------------------------------


def check(before: float, after: float, metric: float) -> None:
    assert after < 0.9 * before
    assert not math.isnan(metric)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_a_pair_comes_out(*, compiled: bool) -> None:
    check(*autoencoder().learn(compiled=compiled))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_a_pair_goes_in(*, compiled: bool) -> None:
    check(*siamese().learn(compiled=compiled))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_dicts_come_out_and_are_aimed_at(*, compiled: bool) -> None:
    check(*two_heads().learn(compiled=compiled))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_masked_batches_of_several_lengths(*, compiled: bool) -> None:
    check(*transformer().learn(compiled=compiled))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_records_go_in_and_come_out(*, compiled: bool) -> None:
    check(*turning().learn(compiled=compiled))


@pytest.mark.parametrize("name", ["pair out", "pair in", "dicts", "records"])
def test_they_learn_in_an_ensemble_as_by_themselves(name: str) -> None:
    runs = {
        "pair out": lambda: autoencoder().learn_together(),
        "pair in": lambda: siamese().learn_together(),
        "dicts": lambda: two_heads().learn_together(),
        "records": lambda: turning().learn_together(),
    }
    for together, alone in zip(*runs[name](), strict=True):
        assert together.train.loss == pytest.approx(alone.train.loss, rel=1e-5)
        assert together.train.metrics["accuracy"] == pytest.approx(alone.train.metrics["accuracy"], rel=1e-5)
