"""Schedules: each against its counterpart in torch.optim.lr_scheduler, which counts in Python numbers."""

import inspect
import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)
from typing_extensions import override

from fundl import (
    Schedule,
    adam,
    constant_schedule,
    cosine_schedule,
    cyclic_schedule,
    exponential_schedule,
    interpolated_schedule,
    inverse_time_schedule,
    join_schedules,
    linear_schedule,
    multiply_schedules,
    one_cycle_schedule,
    piecewise_schedule,
    polynomial_schedule,
    sgd,
    step_schedule,
    warm_restarts_schedule,
    warmup_cosine_schedule,
)
from fundl.optim.chain import AnyTransform
from tests.face import PUBLIC

BASE: Final = 0.3  # the learning rate that torch's schedulers multiply
Peer = Callable[[SGD], LRScheduler]


def warmup(optimizer: SGD) -> LRScheduler:
    rise = LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=7)
    fall = CosineAnnealingLR(optimizer, T_max=23, eta_min=0.01)
    return SequentialLR(optimizer, [rise, fall], milestones=[7])


def three_phases(optimizer: SGD) -> LRScheduler:
    constant = ConstantLR(optimizer, factor=1.0, total_iters=1)
    return SequentialLR(
        optimizer, [constant, ExponentialLR(optimizer, gamma=0.9), StepLR(optimizer, step_size=4)], milestones=[5, 15]
    )


def by_numpy(points: dict[int, float]) -> Peer:
    """What numpy's interpolation gives."""
    steps, values = zip(*sorted(points.items()), strict=True)
    return lambda o: LambdaLR(o, lambda step: float(np.interp(step, steps, values)) / BASE)


def with_halves_of_cosines(step: int) -> float:
    """From 0.1 at step 5 to 0.4 at 10, to 0.2 at 25, by hand."""
    if not 5 < step < 25:
        return 0.1 if step <= 5 else 0.2
    low, size, part = (0.1, 0.3, (10 - step) / 5) if step < 10 else (0.2, 0.2, (step - 10) / 15)
    return low + size * (1 + math.cos(math.pi * part)) / 2


POINTS: Final = {20: 0.2, 0: 0.0, 5: 0.5, 8: 0.1}

# By name: what comes before a colon is the public function that makes it.
SCHEDULES: Final[dict[str, tuple[Schedule, Peer]]] = {
    "constant_schedule": (constant_schedule(BASE), lambda o: ConstantLR(o, factor=1.0)),
    "linear_schedule": (linear_schedule(BASE / 3, BASE / 2, 20), lambda o: LinearLR(o, 1 / 3, 1 / 2, total_iters=20)),
    "step_schedule": (step_schedule(BASE, every=7), lambda o: StepLR(o, step_size=7)),
    "step_schedule: factor": (step_schedule(BASE, factor=0.7, every=3), lambda o: StepLR(o, step_size=3, gamma=0.7)),
    "exponential_schedule": (exponential_schedule(BASE, 0.93), lambda o: ExponentialLR(o, gamma=0.93)),
    "exponential_schedule: to a floor": (
        exponential_schedule(BASE, 0.8, final=0.02),
        lambda o: LambdaLR(o, lambda step: max(0.8**step, 0.02 / BASE)),
    ),
    "exponential_schedule: to a ceiling": (
        exponential_schedule(BASE, 1.2, final=2.0),
        lambda o: LambdaLR(o, lambda step: min(1.2**step, 2.0 / BASE)),
    ),
    "polynomial_schedule": (polynomial_schedule(BASE, 0.0, 20), lambda o: PolynomialLR(o, total_iters=20, power=2.0)),
    "polynomial_schedule: power": (
        polynomial_schedule(BASE, 0.1, 20, power=0.9),
        lambda o: LambdaLR(o, lambda step: (0.1 + (BASE - 0.1) * (1 - min(step, 20) / 20) ** 0.9) / BASE),
    ),
    "warm_restarts_schedule": (
        warm_restarts_schedule(BASE, 7, final=0.01),
        lambda o: CosineAnnealingWarmRestarts(o, T_0=7, eta_min=0.01),
    ),
    "warm_restarts_schedule: longer": (
        warm_restarts_schedule(BASE, 3, growth=3),
        lambda o: CosineAnnealingWarmRestarts(o, T_0=3, T_mult=3),
    ),
    "warm_restarts_schedule: lower": (
        warm_restarts_schedule(BASE, 8, decay=0.5),
        lambda o: LambdaLR(o, lambda step: 0.5 ** (step // 8) * (1 + math.cos(math.pi * (step % 8) / 8)) / 2),
    ),
    "cyclic_schedule": (
        cyclic_schedule(0.1, 0.5, rise=5),
        lambda o: CyclicLR(o, 0.1, 0.5, step_size_up=5, cycle_momentum=False),
    ),
    "cyclic_schedule: triangular2": (
        cyclic_schedule(0.1, 0.5, rise=3, fall=6, decay_per_cycle=0.5),
        lambda o: CyclicLR(o, 0.1, 0.5, step_size_up=3, step_size_down=6, mode="triangular2", cycle_momentum=False),
    ),
    "cyclic_schedule: exp_range": (
        cyclic_schedule(0.1, 0.5, rise=4, fall=1, decay_per_step=0.9),
        lambda o: CyclicLR(o, 0.1, 0.5, 4, 1, mode="exp_range", gamma=0.9, cycle_momentum=False),
    ),
    "piecewise_schedule": (
        piecewise_schedule([BASE, BASE / 10, BASE / 100], [4, 20]),
        lambda o: MultiStepLR(o, milestones=[4, 20]),
    ),
    "interpolated_schedule": (interpolated_schedule(POINTS), by_numpy(POINTS)),
    "interpolated_schedule: halves of cosines": (
        interpolated_schedule({5: 0.1, 10: 0.4, 25: 0.2}, shape="cosine"),
        lambda o: LambdaLR(o, lambda step: with_halves_of_cosines(step) / BASE),
    ),
    "multiply_schedules": (
        multiply_schedules([linear_schedule(0.5, 1.0, 10), exponential_schedule(BASE, 0.9)]),
        lambda o: ChainedScheduler([LinearLR(o, 0.5, 1.0, total_iters=10), ExponentialLR(o, gamma=0.9)]),
    ),
    "inverse_time_schedule": (inverse_time_schedule(BASE, 0.2), lambda o: LambdaLR(o, lambda step: 1 / (1 + 0.2 * step))),
    "cosine_schedule": (cosine_schedule(BASE, 30), lambda o: CosineAnnealingLR(o, T_max=30)),
    "cosine_schedule: final": (cosine_schedule(BASE, 30, final=0.1), lambda o: CosineAnnealingLR(o, T_max=30, eta_min=0.1)),
    "warmup_cosine_schedule": (
        warmup_cosine_schedule(BASE, warmup_steps=7, steps=30, initial=BASE / 10, final=0.01),
        warmup,
    ),
    "one_cycle_schedule": (one_cycle_schedule(BASE, 31), lambda o: OneCycleLR(o, max_lr=BASE, total_steps=31)),
    "one_cycle_schedule: options": (
        one_cycle_schedule(BASE, 31, rise=0.47, initial_divisor=10.0, final_divisor=50.0),
        lambda o: OneCycleLR(o, BASE, total_steps=31, pct_start=0.47, div_factor=10.0, final_div_factor=50.0),
    ),
    "join_schedules": (
        join_schedules([constant_schedule(BASE), exponential_schedule(BASE, 0.9), step_schedule(BASE, every=4)], [5, 15]),
        three_phases,
    ),
}
every_schedule = pytest.mark.parametrize("schedule", [schedule for schedule, _ in SCHEDULES.values()], ids=SCHEDULES.keys())


def test_every_schedule_has_a_sample() -> None:
    public = {name for name in PUBLIC if name.endswith(("_schedule", "_schedules"))}
    assert public == {name.partition(":")[0] for name in SCHEDULES}


@pytest.mark.parametrize(("schedule", "peer"), SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # SequentialLR calls its schedulers in a way that it deprecates
def test_it_equals_torchs(schedule: Schedule, peer: Peer) -> None:
    optimizer = SGD([torch.zeros(1)], lr=BASE)
    scheduler = peer(optimizer)
    expected = []
    for _ in range(31):
        expected.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if len(expected) < 31:
            scheduler.step()
    actual = [float(schedule(torch.tensor(count))) for count in range(31)]
    # a cosine that has come down to 0 is 0 but for rounding, by either formula
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-16)


@every_schedule
def test_it_counts_in_ints_and_tensors_of_any_shape(schedule: Schedule) -> None:
    curve = schedule(torch.arange(40).reshape(2, 20))
    assert curve.shape == (2, 20)
    assert curve.dtype == torch.float64
    for count in (0, 1, 7, 15, 39):
        value = schedule(count)
        assert value.shape == ()
        assert value.equal(curve.flatten()[count])


@every_schedule
def test_it_is_a_value(schedule: Schedule) -> None:
    assert hash(schedule) == hash(schedule)
    others = [other for other, _ in SCHEDULES.values() if other is not schedule]
    assert schedule not in others


@every_schedule
@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_its_trace_goes_on_counting(schedule: Schedule, mode: Literal["fake", "symbolic"]) -> None:
    traced: Callable[[Tensor], Tensor] = make_fx(schedule, tracing_mode=mode)(torch.tensor(3))
    for count in (0, 6, 29):
        assert traced(torch.tensor(count)).equal(schedule(count))


@every_schedule
def test_it_works_on_the_meta_device(schedule: Schedule) -> None:
    value = schedule(torch.zeros((), dtype=torch.int64, device="meta"))
    assert value.is_meta
    assert value.shape == ()


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (linear_schedule(0.1, 0.5, 10), 0.5),
        (cosine_schedule(0.1, 10, final=0.02), 0.02),
        (warmup_cosine_schedule(0.1, warmup_steps=3, steps=10, final=0.02), 0.02),
        (one_cycle_schedule(0.1, 10, initial_divisor=2.0, final_divisor=5.0), 0.01),
    ],
    ids=repr,
)
def test_it_stays_where_it_ends(schedule: Schedule, last: float) -> None:
    assert schedule(torch.tensor([10, 11, 1000])).tolist() == pytest.approx([last] * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant_schedule(math.nan), "value must be a finite number of 0 or more, not nan"),
        (lambda: linear_schedule(0.0, math.inf, 3), "final must be a finite number of 0 or more, not inf"),
        (lambda: linear_schedule(0.0, 1.0, 0), "steps must be 1 or more, not 0"),
        (lambda: step_schedule(1.0, factor=-0.5, every=3), r"factor must be a finite number of 0 or more, not -0\.5"),
        (lambda: step_schedule(1.0, every=-1), "every must be 1 or more, not -1"),
        (lambda: inverse_time_schedule(1.0, -1.0), r"decay must be a finite number of 0 or more, not -1\.0"),
        (lambda: warmup_cosine_schedule(1.0, warmup_steps=5, steps=5), "steps must be more than warmup_steps=5, not 5"),
        (lambda: one_cycle_schedule(1.0, 10, rise=1.0), r"rise must be in \[0, 1\), not 1\.0"),
        (lambda: one_cycle_schedule(1.0, 10, rise=0.1), r"rise \* steps must be more than 1 step, not 0\.1 \* 10"),
        (lambda: one_cycle_schedule(1.0, 10, final_divisor=0.0), r"final_divisor must be a finite number above 0, not 0\.0"),
        (lambda: join_schedules([constant_schedule(1.0)], [3]), "1 schedules meet at 0 boundaries, not 1"),
        (
            lambda: join_schedules([constant_schedule(1.0)] * 3, [3, 3]),
            r"the boundaries must be above 0 and grow, not \(3, 3\)",
        ),
        (lambda: polynomial_schedule(1.0, 0.0, 3, power=0.0), r"power must be a finite number above 0, not 0\.0"),
        (
            lambda: exponential_schedule(1.0, 0.5, final=2.0),
            r"final=2\.0 is never reached from initial=1\.0 by a factor of 0\.5",
        ),
        (
            lambda: exponential_schedule(1.0, 1.5, final=0.5),
            r"final=0\.5 is never reached from initial=1\.0 by a factor of 1\.5",
        ),
        (lambda: exponential_schedule(1.0, 0.5, final=-1.0), r"final must be a finite number of 0 or more, not -1\.0"),
        (lambda: warm_restarts_schedule(1.0, 3, growth=0), "growth must be 1 or more, not 0"),
        (lambda: warm_restarts_schedule(1.0, 3, decay=1.5), r"decay must be in \[0, 1\], not 1\.5"),
        (lambda: cyclic_schedule(1.0, 0.5, rise=3), r"low must be at most high=0\.5, not 1\.0"),
        (lambda: cyclic_schedule(0.0, 0.5, rise=3, fall=0), "fall must be 1 or more, not 0"),
        (lambda: piecewise_schedule([1.0, 0.5], [3, 5]), "2 values meet at 1 boundaries, not 2"),
        (lambda: piecewise_schedule([1.0, -0.5], [3]), r"value 1 must be a finite number of 0 or more, not -0\.5"),
        (lambda: interpolated_schedule({3: 1.0}), r"points are two or more, to be joined, not \{3: 1\.0\}"),
        (lambda: interpolated_schedule({-1: 1.0, 3: 1.0}), "the steps of points are ints of 0 or more, not -1"),
        (
            lambda: interpolated_schedule({0: 1.0, 3: math.inf}),
            "the value of the point at step 3 must be a finite number of 0 or more, not inf",
        ),
        (
            lambda: interpolated_schedule({0: 1.0, 3: 0.5}, shape="cubic"),  # type: ignore[arg-type]  # the mistake
            'shape is "linear" or "cosine", not \'cubic\'',
        ),
        (lambda: multiply_schedules([]), "schedules are one or more: of none there is no product"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_are_ints() -> None:
    with pytest.raises(TypeError, match=r"steps must be an int, not 2\.5"):
        linear_schedule(0.0, 1.0, 2.5)  # type: ignore[arg-type]  # this is the mistake


def test_a_schedule_of_ones_own_is_a_few_lines() -> None:
    # The contract says that a count in float64 comes in.
    assert inspect.isabstract(Schedule)

    class Root(Schedule):
        @override
        def at(self, count: Tensor) -> Tensor:
            return count.add(1).rsqrt()

    assert Root()(3).item() == 0.5


def test_restarts_come_at_integers_however_far() -> None:
    for growth in (2, 3, 5, 7, 10):
        schedule, length, begin = warm_restarts_schedule(1.0, 3, growth=growth), 3, 0
        while begin + length < 2**50:
            begin, length = begin + length, length * growth
            before, there, after = schedule(torch.tensor([begin - 1, begin, begin + 1])).tolist()
            assert there == 1.0
            assert before < there
            assert after <= there


def test_functions_are_multiplied_as_schedules_are() -> None:
    product = multiply_schedules([lambda count: 0.5 * count, linear_schedule(1.0, 0.0, steps=4)])
    assert product(torch.arange(5)).tolist() == [0.0, 0.375, 0.5, 0.375, 0.0]


def test_functions_are_joined_as_schedules_are() -> None:
    seen: list[torch.dtype] = []

    def rising(count: Tensor) -> Tensor:
        seen.append(count.dtype)
        return 0.5 * count

    joined = join_schedules([rising, linear_schedule(1.0, 0.0, steps=2), torch.ones_like], [3, 5])
    assert joined(torch.arange(7)).tolist() == [0.0, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0]
    assert joined(4).dtype == torch.float64
    assert set(seen) == {torch.int64}  # as an optimizer gives it
    params = torch.zeros(1)
    state = sgd(joined).init(params)
    for _ in range(3):
        params, state = sgd(joined).step(torch.ones(1), state, params)
    assert params.tolist() == [-1.5]


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ([0.1, constant_schedule(0.2)], r"schedule 0 is 0\.1, not a schedule: write constant_schedule\(0\.1\)"),
        ([constant_schedule(0.2), None], "schedule 1 is None, not a schedule$"),
    ],
)
def test_what_is_no_schedule_is_not_joined(schedules: list[Schedule], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        join_schedules(schedules, [3])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda _count: torch.full((1,), 0.1), r"float32\[1\]"),
        (lambda _count: None, "None"),
    ],
)
def test_a_rate_that_is_no_number_is_refused(schedule: Callable[[Tensor], Tensor], message: str) -> None:
    optimizers: list[AnyTransform] = [sgd(schedule), adam(schedule), sgd(join_schedules([schedule, schedule], [3]))]
    for optimizer in optimizers:
        state = optimizer.init(torch.zeros(2))
        for call in (optimizer.step, optimizer.update):
            with pytest.raises(
                TypeError, match=f"a schedule gives a number for each count, a tensor of shape .* here, not {message}"
            ):
                call(torch.ones(2), state, torch.zeros(2))
