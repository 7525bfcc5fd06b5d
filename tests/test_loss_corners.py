"""Every sample loss in every corner and layout, eager and traced, against formulas that share nothing with the library.

A corner changes a sample's prediction, target or options. A new loss gets a formula in loss_samples.py, a corner a row here.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl import Reduction, binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, dice, focal, jit, nll
from fundl._common import kernels
from fundl._compiling import lowering
from tests.loss_base import REDUCTIONS, Options, normal
from tests.loss_samples import SAMPLES, axis_of, naive, slopes

INF: Final = math.inf


@attrs.frozen(eq=False)
class Case:
    """A loss with its options, and what it is given."""

    run: partial[tuple[Tensor, Tensor]]
    prediction: Tensor
    target: Tensor

    @property
    def loss(self) -> object:
        return self.run.func

    @property
    def options(self) -> Options:
        return self.run.keywords


def case_of(name: str) -> Case:
    sample = SAMPLES[name]
    loss = sample.loss if isinstance(sample.loss, partial) else partial(sample.loss)
    return Case(loss, sample.prediction, sample.target)


# --- Corners -----------------------------------------------------------------------------------------------------------

Corner = Callable[[Case], Case | None]
"""The case in this corner, or None if the loss has none such."""


def takes_indices(case: Case) -> bool:
    return not case.target.is_floating_point()


def takes_classes(case: Case) -> bool:
    """Whether it takes weights of classes, and leaves some of them out."""
    return case.loss in {cross_entropy, nll, focal}


def leaves_out(case: Case) -> bool:
    return takes_classes(case) and takes_indices(case)


def ignored(case: Case) -> int:
    return int(str(case.options.get("ignore_index", -100)))


def with_option(case: Case, **options: object) -> Case:
    return attrs.evolve(case, run=partial(case.run.func, **{**case.options, **options}))


def with_prediction(case: Case, first_row: list[float]) -> Case:
    """The first sample's first numbers replaced; along the classes if there are any."""
    axis = axis_of(case.options) if takes_classes(case) else -1
    rows = case.prediction.clone().movedim(axis, -1)
    for place, x in enumerate(first_row):
        rows[(*(0,) * (rows.ndim - 1), place)] = x
    return attrs.evolve(case, prediction=rows.movedim(-1, axis))


def with_target(case: Case, target: Tensor) -> Case:
    return attrs.evolve(case, target=target)


def rows(case: Case, count: int) -> Case:
    return attrs.evolve(case, prediction=case.prediction[:count], target=case.target[:count])


def all_ignored(case: Case) -> Case | None:
    return with_target(case, torch.full_like(case.target, ignored(case))) if leaves_out(case) else None


def no_weight(case: Case) -> Case | None:
    if "pos_weight" in case.options:
        return with_option(case, pos_weight=torch.zeros(case.prediction.shape[1:], dtype=torch.float64))
    return with_option(case, weight=torch.zeros(3, dtype=torch.float64)) if takes_classes(case) else None


def unlikely_class_without_weight(case: Case) -> Case | None:
    """The logit -inf stands at the class of the first target, which weighs nothing."""
    if not takes_classes(case):
        return None
    if takes_indices(case):
        target = torch.ones_like(case.target)
        target[-1] = 2
        case = with_target(case, target)
    weightless = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    return with_prediction(with_option(case, weight=weightless), [0.5, -INF, 0.25])


def infinite(*first_row: float) -> Corner:
    def corner(case: Case) -> Case | None:
        return None if case.loss in {binary_cross_entropy, dice} else with_prediction(case, list(first_row))

    return corner


def certain(case: Case) -> Case | None:
    """Infinite logits, and what they say is true."""
    if case.loss is not binary_cross_entropy_with_logits:
        return None
    case = with_prediction(case, [INF, -INF])
    target = case.target.contiguous().clone()
    target.view(-1)[:2] = torch.tensor([1.0, 0.0])
    return with_target(case, target)


def left_out_and_broken(*first_row: float) -> Corner:
    """The sample that is left out has no probabilities."""

    def corner(case: Case) -> Case | None:
        if not leaves_out(case):
            return None
        target = case.target.contiguous().clone()
        target.view(-1)[0] = ignored(case)
        return with_prediction(with_target(case, target), list(first_row))

    return corner


def indices_of(dtype: torch.dtype) -> Corner:
    def corner(case: Case) -> Case | None:
        if not takes_indices(case) or ((case.target < 0).any() and not dtype.is_signed):
            return None
        return with_target(case, case.target.to(dtype))

    return corner


def one_hot(case: Case) -> Case | None:
    """Probabilities 0 and 1, of infinite logits where they are 0."""
    if case.loss is not cross_entropy or takes_indices(case):
        return None
    target = torch.zeros_like(case.target)
    target.select(axis_of(case.options), 1).fill_(1.0)
    return with_prediction(with_target(case, target), [-INF, 0.5, -INF])


def in_dtype(dtype: torch.dtype) -> Corner:
    def corner(case: Case) -> Case:
        target = case.target if takes_indices(case) else case.target.to(dtype)
        return attrs.evolve(case, prediction=case.prediction.to(dtype), target=target)

    return corner


CORNERS: Final[Mapping[str, Corner]] = {
    "as it is": lambda case: case,
    "empty": lambda case: rows(case, 0),
    "one row": lambda case: rows(case, 1),
    "all ignored": all_ignored,
    "no weight": no_weight,
    "an unlikely class without weight": unlikely_class_without_weight,
    "infinite": infinite(0.5, INF),
    "minus infinite": infinite(0.5, -INF),
    "all minus infinite": infinite(-INF, -INF, -INF),
    "infinite and true": certain,
    "nan": infinite(0.5, math.nan),
    "nan, left out": left_out_and_broken(0.5, math.nan),
    "minus infinite, left out": left_out_and_broken(-INF, -INF, -INF),
    "int8": indices_of(torch.int8),
    "uint8": indices_of(torch.uint8),
    "int32": indices_of(torch.int32),
    "one-hot": one_hot,
    "float32": in_dtype(torch.float32),
    "float16": in_dtype(torch.float16),
    "bfloat16": in_dtype(torch.bfloat16),
}

FOR_TRACES: Final = (
    "all ignored",
    "no weight",
    "an unlikely class without weight",
    "infinite and true",
    "nan, left out",
    "one-hot",
    "uint8",
    "bfloat16",
)
"""Corners for which traced losses have formulas of their own; the others are slow tests."""


# --- Layouts -----------------------------------------------------------------------------------------------------------


def transposed(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def classes_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 1 else x


def strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 1]


LAYOUTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": transposed,
    "classes last": classes_last,
    "strided": strided,
    "expanded": lambda x: x[:1].expand(x.shape) if len(x) else x,
}


# --- The sweep ---------------------------------------------------------------------------------------------------------

PRECISIONS: Final = {torch.float64: 1e-8, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@attrs.frozen(eq=False)
class Expected:
    """What the formulas say."""

    total: float
    count: float
    """What a mean divides by."""
    slopes: Tensor
    """Of the total, where it is finite."""

    @classmethod
    def of(cls, case: Case) -> "Expected":
        total, count = naive(case.loss, case.prediction, case.target, case.options)
        return cls(total, count, slopes(case.loss, case.prediction, case.target, case.options))

    def compare(self, prediction: Tensor, reduction: Reduction, value: Tensor, grad: Tensor) -> None:
        """Raise unless value and gradient are those of the formulas; a mean of nothing is nan, and its gradient 0."""
        assert value.shape == ()
        assert value.dtype == torch.promote_types(prediction.dtype, torch.float32)
        assert grad.shape == prediction.shape
        assert grad.dtype == prediction.dtype
        divisor = {"mean": self.count, "sum": 1.0, "batch_mean": float(len(prediction))}[reduction]
        wide, narrow = PRECISIONS[value.dtype], PRECISIONS[prediction.dtype]
        expected = self.total / divisor if divisor else math.nan
        assert value.item() == pytest.approx(expected, rel=wide, abs=wide, nan_ok=True)
        if not divisor:
            assert not grad.any()
        elif math.isfinite(self.total):
            torch.testing.assert_close(grad.double(), self.slopes / divisor, rtol=narrow, atol=narrow)


def is_refused(case: Case, reduction: Reduction) -> bool:
    return not case.prediction.numel() and reduction != "sum"


def cases() -> Iterator[tuple[str, str]]:
    for name in SAMPLES:
        for corner, change in CORNERS.items():
            if change(case_of(name)) is not None:
                yield name, corner


def case_in(name: str, corner: str) -> Case:
    case = CORNERS[corner](case_of(name))
    assert case is not None
    return case


every_case = pytest.mark.parametrize(("name", "corner"), list(cases()))


def check(case: Case, layouts: Iterable[tuple[str, str]]) -> None:
    """Raise unless the loss is as expected, whatever the layouts of prediction and target."""
    expected = functools.cache(lambda *_expanded: Expected.of(laid))  # the other layouts hold the same numbers
    for of_prediction, of_target in layouts:
        prediction, target = LAYOUTS[of_prediction](case.prediction), LAYOUTS[of_target](case.target)
        laid = attrs.evolve(case, prediction=prediction, target=target)
        for reduction in REDUCTIONS:
            if is_refused(laid, reduction):
                with pytest.raises(ValueError, match="nothing to average"):
                    laid.run(prediction, target, reduction=reduction)
            else:
                result = laid.run(prediction, target, reduction=reduction)
                expected(of_prediction == "expanded", of_target == "expanded").compare(prediction, reduction, *result)


def check_traced(case: Case, reduction: Reduction) -> None:
    if not is_refused(case, reduction):
        traced = make_fx(lambda x, t: case.run(x, t, reduction=reduction))(case.prediction, case.target)
        result: tuple[Tensor, Tensor] = traced(case.prediction, case.target)
        Expected.of(case).compare(case.prediction, reduction, *result)


@every_case
def test_every_corner(name: str, corner: str) -> None:
    check(
        case_in(name, corner), [*zip(LAYOUTS, LAYOUTS, strict=True), ("transposed", "contiguous"), ("contiguous", "expanded")]
    )


@pytest.mark.slow
@every_case
def test_every_corner_in_all_layouts(name: str, corner: str) -> None:
    check(case_in(name, corner), product(LAYOUTS, LAYOUTS))


@pytest.mark.parametrize(("name", "corner"), [(name, corner) for name, corner in cases() if corner in FOR_TRACES])
def test_every_corner_traced(name: str, corner: str) -> None:
    check_traced(case_in(name, corner), "mean")


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_corner_traced_in_every_layout(name: str, corner: str, layout: str) -> None:
    case, lay = case_in(name, corner), LAYOUTS[layout]
    for reduction in REDUCTIONS:
        check_traced(attrs.evolve(case, prediction=lay(case.prediction), target=lay(case.target)), reduction)


COMPILED: Final = (
    "cross_entropy, all options",
    "nll of planes",
    "binary_cross_entropy_with_logits, pos_weight",
    "kl_divergence",
)


@pytest.mark.slow
def test_corners_compiled() -> None:
    """Some in one graph: hundreds would compile for many minutes."""
    chosen = [case_in(name, corner) for name, corner in cases() if name in COMPILED and corner in FOR_TRACES]

    def evaluate(inputs: tuple[tuple[Tensor, Tensor], ...]) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(case.run(x, t) for case, (x, t) in zip(chosen, inputs, strict=True))

    results = jit(evaluate)(tuple((case.prediction, case.target) for case in chosen))
    for case, result in zip(chosen, results, strict=True):
        Expected.of(case).compare(case.prediction, "mean", *result)


# --- By hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pos_weight", [None, 0.5, torch.tensor([2.0])])
def test_infinite_logits_of_yes_or_no(dtype: torch.dtype, pos_weight: Tensor | float | None) -> None:
    for x, t, expected in ((INF, 1, 0.0), (-INF, 0, 0.0), (-INF, 1, INF), (INF, 0, INF), (INF, 0.5, INF), (-INF, 0.5, INF)):
        prediction, target = torch.tensor([[x]], dtype=dtype), torch.tensor([[t]], dtype=dtype)
        value, grad = binary_cross_entropy_with_logits(prediction, target, pos_weight=pos_weight)
        assert value.item() == expected
        assert grad.isfinite().all()
        assert bool(grad) == bool(expected)


def test_yes_that_weighs_nothing_costs_nothing() -> None:
    value, grad = binary_cross_entropy_with_logits(torch.tensor([-INF]), torch.ones(1), pos_weight=0.0)
    assert (value.item(), grad.item()) == (0, 0)


def test_nobody_counts() -> None:
    nobody = torch.tensor([-100, -100])
    for loss in (partial(cross_entropy), partial(nll), partial(cross_entropy, label_smoothing=0.1)):
        value, grad = loss(normal(2, 3), nobody)
        assert value.isnan()
        assert torch.equal(grad, torch.zeros(2, 3, dtype=torch.float64))


def test_log_probabilities_of_classes_in_the_last_axis() -> None:
    scores, target = normal(2, 4, 3).log_softmax(-1), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    value, grad = nll(scores.transpose(1, 2), target)
    assert value.item() == pytest.approx(-scores.gather(2, target.unsqueeze(2)).mean().item())
    assert torch.equal(grad, -torch.nn.functional.one_hot(target).transpose(1, 2) / 8)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3)])
@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_classes_out_of_range_have_no_weight_that_hides_them(
    weight: Tensor | None, wrong: int, lay: Callable[[Tensor], Tensor]
) -> None:
    for loss, shape in product((cross_entropy, nll), ((2, 3), (2, 3, 2))):
        target = torch.full((shape[0], *shape[2:]), wrong)
        with pytest.raises(IndexError, match=rf"class index is {wrong}, but there are 3 classes"):
            loss(lay(torch.full(shape, -INF)), lay(target), weight=weight)


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 1, 3)])
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_the_gradient_number_by_number_is_that_of_the_kernel(shape: tuple[int, ...], kind: int, ignore_index: int) -> None:
    """As compiled code for a GPU has it."""
    x = torch.log_softmax(normal(*shape), 1)
    target = torch.tensor([0, 3, 2, ignore_index, 1, 3]).reshape(shape[0], *shape[2:])
    for labels in (target, torch.full_like(target, ignore_index)):
        total = (labels != ignore_index).sum().to(x.dtype)
        grad = torch.tensor(1.5, dtype=x.dtype)
        kernel = kernels.nll_loss_backward if len(shape) == 2 else kernels.nll_loss2d_backward
        expected = kernel(grad, x, labels, None, 1 if kind == 1 else 2, ignore_index, total)
        found = lowering.in_each_row(-grad / total if kind == 1 else -grad, x, labels, ignore_index)
        assert torch.equal(found, expected)
