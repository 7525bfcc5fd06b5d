"""On a GPU: losses, optimizers, steps in loops, batches and files, against the CPU. `pytest -m cuda` runs them.

Each compiled function of these tests holds many losses or optimizers: compiling takes seconds.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import (
    AnyTransform,
    Dropout,
    Report,
    Tanh,
    accumulate,
    adamw,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    ema,
    ensemble,
    fit,
    fold_in,
    initialize,
    jit,
    key,
    layer_norm,
    linear,
    load,
    minibatches,
    momentum,
    random,
    save,
    scan,
    skip_nonfinite,
    skipped_steps,
    split,
    train_state,
    train_step,
    tree,
)
from fundl._common.half import all_to
from fundl.data import _copying
from tests.loss_samples import SAMPLES as LOSSES
from tests.on_gpu import CPU, DEVICE, IS_GPU, MARKS, assert_as_on_cpu, moved
from tests.optimizer_samples import OPTIMIZERS

pytestmark = MARKS
F64: Final = torch.float64

Pair: TypeAlias = tuple[Tensor, Tensor]

MODEL: Final = compose(linear(4, 6, dtype=F64), Tanh(), Dropout(0.2), linear(6, 3, dtype=F64))


def batches(count: int) -> list[Pair]:
    """So many batches of 8 rows, of three classes that the first feature decides."""
    xs = [random.normal(fold_in(key(5), number), (8, 4), dtype=F64) for number in range(count)]
    return [(x, (x[:, 0] > 0).to(torch.int64) + (x[:, 0] > 1).to(torch.int64)) for x in xs]


# --- Losses ------------------------------------------------------------------------------------------------------------


def losses(inputs: dict[str, Pair], device: torch.device) -> dict[str, Pair]:
    """Value and gradient of each loss of the samples."""
    found = {}
    for name, (prediction, target) in inputs.items():
        loss = LOSSES[name].loss
        if isinstance(loss, partial):
            options = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in loss.keywords.items()}
            loss = partial(loss.func, **options)
        found[name] = loss(prediction, target)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_losses(dtype: torch.dtype, tolerance: float) -> None:
    inputs = {name: row.inputs(dtype) for name, row in LOSSES.items()}
    assert_as_on_cpu(losses(moved(inputs), DEVICE), losses(inputs, CPU), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_compiled_losses(dtype: torch.dtype, tolerance: float) -> None:
    inputs = {name: row.inputs(dtype) for name, row in LOSSES.items()}
    compiled = jit(partial(losses, device=DEVICE))
    assert_as_on_cpu(compiled(moved(inputs)), losses(inputs, CPU), tolerance)
    assert all(trace.compiled for trace in compiled.traces)


# --- Optimizers --------------------------------------------------------------------------------------------------------

States: TypeAlias = dict[str, object]

_AT_ONCE: Final = 6
_NAMES: Final = list(OPTIMIZERS)
PARTS: Final = [_NAMES[first : first + _AT_ONCE] for first in range(0, len(_NAMES), _AT_ONCE)]


def stepper(optimizers: dict[str, AnyTransform]) -> Callable[[States, Pair], States]:
    """A step of a model by each of some optimizers, for itself."""
    steps = {name: train_step(cross_entropy, optimizer) for name, optimizer in optimizers.items()}

    def step(states: States, batch: Pair) -> States:
        return {name: steps[name](state, batch)[0] for name, state in states.items()}  # type: ignore[arg-type]  # its own

    return step


def begun(optimizers: dict[str, AnyTransform]) -> States:
    return {name: train_state(key(1), initialize(key(0), MODEL), optimizer) for name, optimizer in optimizers.items()}


@pytest.mark.parametrize("names", PARTS, ids=lambda names: names[0])
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_of_optimizers(names: list[str], compiled: bool) -> None:
    optimizers = {name: OPTIMIZERS[name] for name in names}
    step = stepper(optimizers)
    run = jit(step, donate="states") if compiled else step
    expected = begun(optimizers)
    found = moved(expected)
    for batch in batches(5):
        expected, found = step(expected, batch), run(found, moved(batch))
    assert_as_on_cpu(found, expected, 1e-9)


SCALING: Final[dict[str, AnyTransform]] = {
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(1.0), momentum(0.1)), initial=2.0**10, every=2),
    "skipping": skip_nonfinite(adamw(0.1)),
    "both": dynamic_loss_scale(skip_nonfinite(adamw(0.1)), initial=2.0**10),
    "in windows": accumulate(skip_nonfinite(momentum(0.1)), steps=2),
}


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_that_are_not_finite_are_left_out(compiled: bool) -> None:
    step = stepper(SCALING)
    run = jit(step, donate="states") if compiled else step
    expected = begun(SCALING)
    found = moved(expected)
    for number, (x, target) in enumerate(batches(8)):
        if number in {2, 5}:
            x[3, 1] = torch.inf
        expected, found = step(expected, (x, target)), run(found, moved((x, target)))
    assert_as_on_cpu(found, expected, 1e-9)
    assert int(skipped_steps(found["skipping"])) == 2
    assert all(torch.isfinite(leaf).all() for leaf in tree.leaves(found) if leaf.is_floating_point())


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_overflows_and_goes_on(compiled: bool) -> None:
    """The scale of float16 begins too high, is halved by steps that are left out, and the loss falls."""
    optimizer = dynamic_loss_scale(momentum(0.05), initial=2.0**24)
    model = initialize(key(0), compose(linear(4, 32), Tanh(), linear(32, 3)), dtype=torch.float16)
    step = train_step(cross_entropy, optimizer)
    run = jit(step, donate="state") if compiled else step
    state, reported = moved(train_state(key(1), model, optimizer)), []
    for number in range(60):
        x, target = moved(batches(1)[0], torch.float16)
        state, report = run(state, (x, target))
        reported.append(report.loss)
        assert number < 59 or bool(torch.isfinite(report.loss))
    assert all(torch.isfinite(leaf).all() for leaf in tree.leaves(state.model))
    assert float(reported[-1]) < 0.7 * float(reported[0])


# --- Loops -------------------------------------------------------------------------------------------------------------


def test_a_scan_of_a_thousand_steps_gives_the_numbers_of_steps() -> None:
    optimizer = chain(clip_by_global_norm(1.0), adamw(1e-3), ema(0.9))
    step = train_step(cross_entropy, optimizer)
    expected = train_state(key(1), initialize(key(0), MODEL), optimizer)
    some = batches(500)
    loop, found, reports = scan(step), moved(expected), []
    xs, targets = zip(*moved(some), strict=True)
    own = torch.stack(xs), torch.stack(targets)
    for _ in range(2):
        found, report = loop(found, own)
        reported = []
        for batch in some:
            expected, one = step(expected, batch)
            reported.append(one.loss)
        reports.append((report.loss, torch.stack(reported)))
    assert all(trace.compiled for trace in loop.traces)
    for on_device, on_cpu in reports:
        assert_as_on_cpu(on_device, on_cpu, 1e-7)
    assert_as_on_cpu(found, expected, 1e-6)


def test_a_donated_step_that_is_replayed_a_thousand_times_gives_the_numbers_of_steps() -> None:
    optimizer = adamw(1e-3)
    step = train_step(cross_entropy, optimizer)
    run = jit(step, donate="state")
    expected = train_state(key(1), initialize(key(0), MODEL), optimizer)
    found, kept = moved(expected), []
    some = batches(50)
    on_device = moved(some)
    for number in range(1000):
        expected, one = step(expected, some[number % 50])
        found, report = run(found, on_device[number % 50])
        if number % 100 == 7:  # an old value, and the state in the middle, are whoever's who holds them
            kept.append((report.loss, one.loss, tree.map(Tensor.clone, found.model), expected.model))
    for loss, wanted, model, wanted_model in kept:
        assert_as_on_cpu((loss, model), (wanted, wanted_model), 1e-6)
    assert_as_on_cpu(found, expected, 1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_runs(compiled: bool) -> None:
    """`fit` on batches that come from the host, and with an evaluation, gives the history of the CPU."""
    optimizer = adamw(1e-2)
    xs, targets = zip(*batches(12), strict=True)
    data = torch.cat(xs), torch.cat(targets)
    step = train_step(cross_entropy, optimizer)

    def run(device: torch.device, compiled: bool) -> tuple[object, list[float]]:
        state = moved(train_state(key(1), initialize(key(0), MODEL), optimizer), device=device)
        state, history = fit(
            step,
            state,
            lambda of: minibatches(of, data, 20, device=device),
            epochs=3,
            compile=compiled,
            progress=False,
        )
        return state, [epoch.train.loss for epoch in history]

    (found, history), (expected, wanted) = run(DEVICE, compiled), run(CPU, compiled=False)
    assert_as_on_cpu(found, expected, 1e-8)
    torch.testing.assert_close(history, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_ensemble(compiled: bool) -> None:
    optimizer = chain(clip_by_global_norm(1.0), adamw(1e-2))
    models = ensemble.initialize(split(key(0), 3), compose(linear(4, 6), Tanh(), layer_norm(6), linear(6, 3)), dtype=F64)
    expected = ensemble.train_state(split(key(1), 3), models, optimizer)
    step = ensemble.train_step(cross_entropy, optimizer)
    run, found = jit(step, donate="state") if compiled else step, moved(expected)
    for x, target in batches(5):
        batch = ensemble.share((x, target), 3)
        expected, wanted = step(expected, batch)
        found, report = run(found, moved(batch))
        assert_as_on_cpu(report.loss, wanted.loss, 1e-9)
    assert_as_on_cpu(found, expected, 1e-8)


# --- Batches and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_batches_come_while_the_device_computes(keyed: bool) -> None:
    """They are whole when they are used, and stay what they were, though much else is queued."""
    data = torch.arange(4096 * 64.0).view(4096, 64), torch.arange(4096)
    busy, seen = torch.eye(2048, device=DEVICE), []
    order = key(3) if keyed else None
    for x, rows in minibatches(order, data, 96, device=DEVICE):
        for _ in range(4 if IS_GPU else 0):
            busy = busy @ busy
        seen.append((x, rows, x.sum(1)))
    for (x, rows, sums), (own, places) in zip(seen, minibatches(order, data, 96), strict=True):
        assert torch.equal(rows.cpu(), places)
        assert torch.equal(x.cpu(), own)
        assert_as_on_cpu(sums, own.sum(1), 1e-5)


@pytest.mark.skipif(not IS_GPU, reason="only a GPU has streams")
def test_copies_do_not_wait_for_what_was_queued_before() -> None:
    """While a long queue of products is on the way, a batch is there long before their end."""
    busy, x = torch.eye(4096, device=DEVICE), torch.arange(4096 * 64.0).view(4096, 64)
    begun, sent, done = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
    batches_of_x = iter(minibatches(None, x, 4096, device=DEVICE))
    next(iter(minibatches(None, x, 4096, device=DEVICE)))  # page-locked memory and the stream are there
    torch.cuda.synchronize()
    begun.record()
    for _ in range(100):
        busy = busy @ busy
    batch = next(batches_of_x)
    sent.record(_copying(torch.cuda.current_device()))
    done.record()
    torch.cuda.synchronize()
    assert torch.equal(batch.cpu(), x)
    assert begun.elapsed_time(sent) < 0.5 * begun.elapsed_time(done)


def test_batches_come_back_to_the_host_whole() -> None:
    x = torch.arange(2**22, device=DEVICE).view(4096, 1024)
    for number, batch in enumerate(minibatches(None, x, 1024, device=CPU)):
        assert torch.equal(batch, torch.arange(2**20 * number, 2**20 * (number + 1)).view(1024, 1024))


def test_a_run_goes_on_from_its_file_on_another_device(tmp_path: Path) -> None:
    optimizer = chain(clip_by_global_norm(1.0), adamw(1e-2), ema(0.9))
    step, some = train_step(cross_entropy, optimizer), batches(6)
    begin = train_state(key(1), initialize(key(0), MODEL), optimizer)
    expected = begin
    for batch in some:
        expected, _ = step(expected, batch)
    state = moved(begin)
    for turn, device in enumerate((DEVICE, CPU, DEVICE)):
        like = moved(begin, device=device)
        state = state if turn == 0 else load(tmp_path / "state.safetensors", like)
        assert {leaf.device.type for leaf in tree.leaves(state)} == {device.type}
        for batch in some[2 * turn : 2 * turn + 2]:
            state, _ = step(state, moved(batch, device=device))
        save(tmp_path / "state.safetensors", state)
    assert_as_on_cpu(state, expected, 1e-9)
    assert_as_on_cpu(moved(load(tmp_path / "state.safetensors", begin)), expected, 1e-9)


def test_reports_are_handed_on() -> None:
    """What a step reports stays what it was, after steps that write over the state."""
    optimizer = momentum(0.1)
    run = jit(train_step(cross_entropy, optimizer), donate="state")
    state, some, reports = moved(train_state(key(1), initialize(key(0), MODEL), optimizer)), batches(12), list[Report[Tensor]]()
    for batch in some:
        state, report = run(state, moved(batch))
        reports.append(report)
    losses = [cross_entropy(report.prediction, moved(target))[0] for report, (_, target) in zip(reports, some, strict=True)]
    assert_as_on_cpu(torch.stack([report.loss for report in reports]), torch.stack(losses).cpu(), 1e-9)
    assert len({float(report.loss) for report in reports}) == len(reports)


def test_tensors_are_cast_as_each_alone() -> None:
    """Many of them by one kernel, of which a number between two of 16 bits has to go to the even one, as elsewhere."""
    given = [random.normal(key(place), (place % 7, 33)) * 3.0 ** (place - 20) for place in range(40)]
    given += [given[6].t(), given[6][:, ::2], torch.tensor([1 + 2**-9, 1 + 3 * 2**-9, torch.inf, torch.nan, 3e38, 1e-45])]
    for compute in (torch.bfloat16, torch.float16, F64):
        narrow = all_to([each.to(DEVICE) for each in given], [compute] * len(given))
        back = all_to(narrow, [torch.float32] * len(given))
        for tensor, wide, each in zip(narrow, back, given, strict=True):
            assert tensor.device.type == DEVICE.type
            torch.testing.assert_close(tensor.to(CPU), each.to(compute), rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(wide.to(CPU), each.to(compute).float(), rtol=0, atol=0, equal_nan=True)
