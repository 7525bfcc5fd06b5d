"""Training over many processes gives the numbers of one process that has the whole batch."""

from functools import partial
from pathlib import Path
from typing import Final, Literal
from unittest import mock

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Checkpoints,
    Dropout,
    Evaluation,
    Flatten,
    Layer,
    ReLU,
    accumulate,
    accuracy,
    adam,
    adamw,
    apply,
    batch_norm,
    chain,
    clip_by_global_norm,
    compose,
    conv2d,
    cross_entropy,
    dynamic_loss_scale,
    embedding,
    evaluate,
    fit,
    initialize,
    key,
    linear,
    minibatches,
    momentum,
    mse,
    over_time,
    random,
    repeat,
    sgd,
    skip_nonfinite,
    train_state,
    train_step,
    transformer_block,
    tree,
    weighed_by,
    with_statistics,
)
from fundl._common import exchanges
from fundl.distributed import Group
from fundl.layer import Loss, Model
from fundl.tree import BUFFER
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64


@attrs.frozen(eq=False)
class Noise(Layer[None]):
    """A user's layer that draws: y = x + noise."""

    key: Tensor | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x if self.key is None else x + random.normal(self.key, tuple(x.shape), dtype=x.dtype)), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Noise", Tensor]:
        return self, grad


def counted(prediction: Tensor, target: Tensor) -> Tensor:
    return (target >= 0).sum().to(prediction.dtype)


@weighed_by(counted)
def of_counted(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A user's loss, which is no number where nothing counts."""
    grad = torch.where(target >= 0, prediction - target, 0.0) * (2 / counted(prediction, target))
    return (grad * (prediction - target)).sum() / 2, grad


@attrs.frozen
class Case:
    model: Model
    loss: Loss[Tensor, Tensor]
    optimizer: AnyTransform
    data: tuple[Tensor, Tensor]
    batch_size: int = 13
    track: float | None = None


def rows(count: int = 40, features: int = 6) -> Tensor:
    return random.normal(key(1), (count, features), dtype=DOUBLE)


def labels(count: int = 40, ignored: float = 0.0) -> Tensor:
    found = random.randint(key(2), (count,), low=0, high=5)
    return torch.where(random.bernoulli(key(3), (count,), probability=ignored), -100, found)


def images() -> tuple[Tensor, Tensor]:
    return random.normal(key(1), (40, 3, 5, 5), dtype=DOUBLE) + 100.0, labels()


def sequences() -> tuple[Tensor, Tensor]:
    tokens = random.randint(key(1), (14, 8), low=0, high=5)
    return tokens[:, :-1], torch.where(random.bernoulli(key(3), (14, 7), probability=0.4), -100, tokens[:, 1:])


def network(*inner: Model) -> Model:
    return compose(linear(6, 16, dtype=DOUBLE), ReLU(), *inner, linear(16, 5, dtype=DOUBLE))


def cases() -> dict[str, Case]:
    """Few, in which each thing is once at least."""
    of_tokens = partial(cross_entropy, axis=-1)
    weighted = partial(cross_entropy, weight=torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=DOUBLE))
    sparse = labels(40, 0.9)
    language = compose(
        embedding(5, 8, dtype=DOUBLE),
        repeat(2, *transformer_block(8, 2, causal=True, dropout=0.2, dtype=DOUBLE)),
        over_time(linear(8, 8, dtype=DOUBLE), Dropout(0.3)),
        linear(8, 5, dtype=DOUBLE),
    )
    film = compose(conv2d(3, 4, 3, dtype=DOUBLE), batch_norm(4, dtype=DOUBLE), ReLU(), Flatten(), linear(36, 5, dtype=DOUBLE))
    target = random.normal(key(4), (40, 5), dtype=DOUBLE)
    return {
        "dropout, clipped": Case(
            network(Dropout(0.5)), cross_entropy, chain(clip_by_global_norm(0.5), adam(1e-2)), (rows(), labels())
        ),
        "own noise": Case(network(Noise()), mse, sgd(0.1), (rows(), target)),
        "ignored": Case(network(), cross_entropy, adamw(1e-2), (rows(), sparse), 5),
        "weights of classes": Case(network(), weighted, momentum(0.1), (rows(), labels(40, 0.3))),
        "own loss": Case(network(), of_counted, sgd(0.1), (rows(), torch.where(target > 0.5, target, -1.0)), 4),
        "sum": Case(network(), partial(mse, reduction="sum"), sgd(1e-4), (rows(), target)),
        "mean over the batch": Case(network(), partial(mse, reduction="batch_mean"), sgd(1e-2), (rows(), target)),
        "accumulated": Case(
            network(), cross_entropy, accumulate(chain(clip_by_global_norm(0.1), adam(1e-2)), 3), (rows(), sparse), 7
        ),
        "scaled": Case(network(), cross_entropy, dynamic_loss_scale(adam(1e-2)), (rows(), labels())),
        "skipped": Case(network(), mse, skip_nonfinite(sgd(0.1)), (torch.where(rows() > 2.5, torch.inf, rows()), target), 3),
        "statistics": Case(film, cross_entropy, sgd(0.05), images(), 9, 0.1),
        "transformer": Case(language, of_tokens, momentum(1e-2), sequences(), 5),
    }


def trained(group: Group, name: str) -> tuple[list[float], list[Tensor]]:
    """The losses of some steps, and the state after them."""
    case = cases()[name]
    state = train_state(key(6), initialize(key(5), case.model), case.optimizer)
    step = train_step(case.loss, case.optimizer, track=case.track, over=group)
    losses = []
    for epoch in range(3):
        for batch in minibatches(random.fold_in(key(7), epoch), case.data, case.batch_size, part=group):
            state, report = step(state, batch)
            losses.append(float(report.loss))
    return losses, tree.leaves(state)


BY_FOUR: Final = ("dropout, clipped", "transformer")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[(name, 2) for name in cases()],
        *[pytest.param(name, 4, marks=[] if name in BY_FOUR else pytest.mark.slow) for name in cases()],
    ],
)
def test_the_numbers_are_those_of_one_process(name: str, count: int) -> None:
    expected_losses, expected = trained(ALONE, name)
    (losses, leaves), *others = together(count, trained, name)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-11, atol=1e-12, equal_nan=True)
    for leaf, of_one in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf, of_one, rtol=1e-11 if of_one.abs().max() > 10 else 0, atol=1e-12)
    for other_losses, other in others:
        torch.testing.assert_close(other_losses, losses, rtol=0, atol=0, equal_nan=True)
        assert tree.equal(other, leaves)


def test_batch_norm_is_judged_by_statistics() -> None:
    model, two = initialize(key(0), compose(linear(2, 3), batch_norm(3))), Group("two", 2, 0)
    with pytest.raises(ValueError, match=r"normalise with those of the rows that each process has: train with"):
        evaluate(mse, model, [], over=two)
    assert evaluate(mse, model, [(torch.ones(4, 2), torch.zeros(4, 3))], over=ALONE).loss < 1e-3


# --- Runs -------------------------------------------------------------------------------------------------------------


def fitted(group: Group, folder: str, epochs: int, every: int | None) -> tuple[object, list[Tensor], object]:
    """A run with metrics, an evaluation and checkpoints."""
    case = cases()["statistics"]
    metrics = {"accuracy": accuracy}

    def test(model: Model) -> Evaluation:
        batches = minibatches(None, (images()[0].flip(0), images()[1]), 13, part=group)
        return evaluate(case.loss, model, batches, metrics=metrics, over=group)

    state, history = fit(
        train_step(case.loss, case.optimizer, track=0.1, over=group),
        train_state(key(6), with_statistics(initialize(key(5), case.model)), case.optimizer),
        lambda key: minibatches(key, case.data, 9, part=group),
        epochs=epochs,
        every=every,
        metrics=metrics,
        evaluate=test,
        checkpoints=Checkpoints(folder),
        over=group,
        compile=False,
        progress=False,
    )
    numbers = [
        [epoch.step, epoch.train.loss, epoch.train.metrics, epoch.test.numbers if epoch.test else None] for epoch in history
    ]
    return numbers, tree.leaves(state), state.model


@pytest.mark.parametrize("every", [None, 3])
def test_a_run_with_all_that_belongs_to_it(tmp_path: Path, every: int | None) -> None:
    expected, expected_leaves, model = fitted(ALONE, str(tmp_path / "alone"), 4, every)
    for count in 2, 4:
        folder = str(tmp_path / f"of {count}")
        together(count, fitted, folder, 2, every)
        whole = together(count, fitted, str(tmp_path / f"whole of {count}"), 4, every)
        for place, (numbers, leaves, _) in enumerate(together(count, fitted, folder, 4, every)):  # goes on
            torch.testing.assert_close(numbers, expected, rtol=1e-7, atol=1e-7)  # accuracies are in float32
            torch.testing.assert_close(leaves, expected_leaves, rtol=1e-11, atol=1e-11)
            assert tree.equal(leaves, whole[place][1])
            assert numbers == whole[place][0]
    assert model


def parts(group: Group) -> list[list[list[int]]]:
    found = []
    for batch_size, some_key, drop_last in [(4, key(0), False), (3, key(0), False), (7, None, True), (4, None, False)]:
        batches = minibatches(some_key, torch.arange(17), batch_size, drop_last=drop_last, part=group)
        assert len(batches) == len([*batches])
        assert [batch.tolist() for batch in batches.after(2)] == [batch.tolist() for batch in batches][2:]
        found.append([batch.tolist() for batch in batches])
    return found


def test_parts_of_batches() -> None:
    whole = parts(ALONE)
    for size in 2, 3, 4, 5:
        own = [parts(Group("some", size, rank)) for rank in range(size)]
        for place, batches in enumerate(whole):
            for number, batch in enumerate(batches):
                for rank in range(size):
                    assert own[rank][place][number] == batch[rank::size]


def mistakes(group: Group) -> list[str]:
    optimizer, data, loss = sgd(0.1), (rows(), labels()), cross_entropy
    step, alone = train_step(loss, optimizer, over=group), train_step(loss, optimizer)
    state = train_state(key(6), initialize(key(5), network()), optimizer)
    other = train_state(key(6), initialize(key(group.rank), network()), optimizer)

    def run(some_step: object, some_state: object, batches: object, over: Group | None) -> None:
        fit(some_step, some_state, batches, epochs=1, over=over, progress=False, compile=False)  # type: ignore[arg-type]

    told = []
    for call in (
        lambda: run(step, state, [data], None),
        lambda: run(step, state, [data], Group("another", 2, group.rank)),
        lambda: run(step, other, [data], group),
        lambda: run(step, state, [data] * (1 + group.rank), group),
        lambda: run(alone, state, [data], 3),  # type: ignore[arg-type]
        lambda: train_step(loss, optimizer, over="data"),  # type: ignore[arg-type]
        lambda: evaluate(loss, state.model, [], over=group),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        told.append(str(caught.value))
    return told


def test_mistakes_are_told() -> None:
    for told in together(2, mistakes):
        for message, part in zip(
            told,
            (
                "the step is over the 2 processes of 'fundl', but the run is of one: give it the same group, over=group",
                "the step is over the 2 processes of 'fundl', but the run over those of 'another'",
                "the state.model[0].weight is not the same in all processes: make it from the same key",
                "the processes have batches, as many as 1 in process 0 and 2 in process 1",
                "a group is what start() of fundl.distributed gives first, not 3",
                "a group is what start() of fundl.distributed gives first, not 'data'",
                "there is nothing to average",
            ),
            strict=True,
        ):
            assert part in message


def test_a_group_of_one_changes_nothing() -> None:
    for case in cases().values():
        state = train_state(key(6), initialize(key(5), case.model), case.optimizer)
        for batch in [*minibatches(key(7), case.data, case.batch_size)][:2]:
            plain, _ = train_step(case.loss, case.optimizer, track=case.track)(state, batch)
            over, _ = train_step(case.loss, case.optimizer, track=case.track, over=ALONE)(state, batch)
            assert all(
                torch.equal(one.nan_to_num(7), same.nan_to_num(7))
                for one, same in zip(tree.leaves(plain), tree.leaves(over), strict=True)
            )


def test_the_prediction_reported_is_of_the_own_rows() -> None:
    for rank, prediction in enumerate(together(2, predicted)):
        assert prediction.shape == (20, 5)
        torch.testing.assert_close(prediction, apply(initialize(key(5), network()), rows()[rank::2]))


def predicted(group: Group) -> Tensor:
    optimizer = sgd(0.1)
    state = train_state(key(6), initialize(key(5), network()), optimizer)
    (batch,) = minibatches(None, (rows(), labels()), 40, part=group)
    _, report = train_step(cross_entropy, optimizer, over=group)(state, batch)
    return report.prediction


class Order:
    """What happens in a step, in its order."""

    def __init__(self) -> None:
        self.seen: list[str] = []


@attrs.frozen(eq=False)
class Watched(Layer[None]):
    """Tells when its backward runs, and gives a gradient that is kept elsewhere, too."""

    weight: Tensor
    kept: Tensor = attrs.field(metadata=BUFFER)
    order: Order

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.weight.sum(), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Watched", Tensor]:
        self.order.seen.append("backward")
        return self.gradient(self.kept), grad


def watched(group: Group) -> tuple[list[str], bool, float]:
    """The order of a step, whether a gradient that others hold stayed as it was, and what became of the parameters."""
    order, kept = Order(), torch.ones(2**20)
    model = (Watched(torch.zeros(2**20), torch.ones(2**20), order), Watched(torch.zeros(2**20), kept, order))
    begin = exchanges.all_reduce_

    def noted(x: Tensor, how: Literal["sum", "max"], name: str) -> Tensor:
        order.seen.append("sum")
        return begin(x, how, name)

    with mock.patch.object(exchanges, "all_reduce_", noted):
        state, _ = train_step(mse, sgd(1.0), over=group)(
            train_state(key(0), model, sgd(1.0)), (torch.zeros(2, 3), torch.ones(2, 3))
        )
    return order.seen, bool((kept == 1).all()), state.model[1].weight[0].item()


def test_gradients_travel_while_others_are_found() -> None:
    for result in together(2, watched):
        assert result == (["backward", "sum", "backward", "sum"], True, -2.0)
