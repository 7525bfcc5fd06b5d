"""Every optimizer against its formula in float64: gradients of zero, NaN, infinity, large and small, in every dtype."""

import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl import (
    Schedule,
    State,
    accumulate,
    adagrad,
    adam,
    apply_updates,
    clip_by_global_norm,
    linear_schedule,
    lion,
    rmsprop,
    scale_by_adam,
    sgd,
    tree,
)
from fundl.optim.chain import AnyTransform
from tests.optimizer_memory import Memory, formula
from tests.optimizer_samples import OPTIMIZERS, begin

Params = tuple[Tensor, Tensor]
Step = Callable[[Params, State[Params, object], Params], list[Tensor]]

DTYPES: Final = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
VALUES: Final = (0.0, math.nan, math.inf, -math.inf, 1e20, 6e4, 1e-7, 1e-30)

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
every_dtype = pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, marks=[] if place < 2 else [pytest.mark.slow]) for place, dtype in enumerate(DTYPES)], ids=str
)


def draw(seed: int, dtype: torch.dtype) -> Params:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3), (3,)))
    return weight.to(dtype), bias.to(dtype)


def gradients(value: float, dtype: torch.dtype, *, everywhere: bool) -> list[Params]:
    """Three gradients: the first and the last of them of a value, in all places or in one."""
    usual, strange = draw(1, dtype), draw(2, torch.float64)
    if everywhere:
        strange = (torch.full_like(strange[0], value), torch.full_like(strange[1], value))
    else:
        strange[0][1, 1] = value
    rounded = (strange[0].to(dtype), strange[1].to(dtype))
    return [rounded, usual, rounded]


def step_as_traced(optimizer: AnyTransform, dtype: torch.dtype) -> Step:
    """A step as a compiler sees it, for params of the shapes and dtype of these tests."""
    params = draw(0, dtype)
    leaves, structure = tree.flatten((draw(1, dtype), optimizer.init(params), params))

    def flat(*tensors: Tensor) -> list[Tensor]:
        filling = iter(tensors)
        return tree.leaves(
            optimizer.step(*tree.unflatten(structure, [leaf if leaf is None else next(filling) for leaf in leaves]))
        )

    tensors = [leaf for leaf in leaves if leaf is not None]
    run: Callable[..., list[Tensor]] = make_fx(flat, tracing_mode="fake")(*tensors)  # type: ignore[explicit-any]
    return lambda grads, state, params: run(*tree.leaves((grads, state, params)))


def float64s(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to(torch.float64) for tensor in tensors]


def can_hold(dtype: torch.dtype, memory: Memory) -> bool:
    """Whether the state, which is float32 for 16 bits, holds what a formula has to remember."""
    most = torch.finfo(torch.promote_types(dtype, torch.float32)).max
    return all(bool((tensor.abs() <= most).all()) for tensor in memory.all())


def assert_alike(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, scale: Sequence[Tensor]) -> None:
    """Infinite and not a number in the same places, and else near: relative to what is larger, it or the scale."""
    for one, other, size in zip(float64s(actual), float64s(expected), float64s(scale), strict=True):
        finite = other.isfinite()
        assert torch.equal(one.isfinite(), finite)
        assert torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num())
        assert torch.equal(one.isnan(), other.isnan())
        bound = tolerance * torch.maximum(other.abs(), size.nan_to_num().abs())
        assert bool(((one - other).abs() <= bound + 1e-300)[finite].all()), (one, other)


@every_optimizer
@every_dtype
def test_every_gradient_gives_what_the_formula_says(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    traced, unit = step_as_traced(optimizer, dtype), torch.finfo(dtype).eps
    for value, everywhere in itertools.product(VALUES, (True, False)):
        params = draw(0, dtype)
        state, memory = optimizer.init(params), begin(optimizer, float64s(params), tree.trainable_paths(params))
        for grads in gradients(value, dtype, everywhere=everywhere):
            expected = formula(optimizer, float64s(grads), memory, float64s(params))
            updates, _ = optimizer.update(grads, state, params)
            stepped, after = optimizer.step(grads, state, params)
            if can_hold(dtype, memory):
                tolerance, scale = 1e-12 if dtype == torch.float64 else max(4 * unit, 1e-5), [1e-9 * g for g in grads]
                if "ScaleByMuon" in repr(optimizer):  # where it makes matrices orthogonal, rounding grows 500 times
                    tolerance, scale = 500 * tolerance, [torch.ones_like(g) for g in grads]
                if "ScheduleFree" in repr(optimizer):  # which leads to a mean of params that are rounded themselves
                    scale = [1 + 10 * p.abs() for p in params]
                assert_alike(updates, [update.to(dtype) for update in expected], tolerance, scale)
            assert_alike(apply_updates(params, updates), stepped, 4 * unit, params)
            results = traced(grads, state, params)
            assert_alike(results[:2], stepped, 4 * unit, params)
            if not any(bool(leaf.isnan().any()) for leaf in tree.leaves(after)):  # all is lost, and amsgrad's kernel loses that
                assert_alike(results[2:], tree.leaves(after), 1e-5, tree.leaves(after))
            params, state = stepped, after


# --- 16 bits --------------------------------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_gathered_of_16_bits_is_in_float32(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    params = draw(0, dtype)
    updates, state = optimizer.update(draw(1, dtype), optimizer.init(params), params)
    assert not {leaf.dtype for leaf in tree.leaves(state)} & {torch.bfloat16, torch.float16}
    assert {leaf.dtype for leaf in updates} == {dtype}


@pytest.mark.parametrize("optimizer", [rmsprop(0.1), rmsprop(0.1, centered=True), adagrad(0.1), adam(0.1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_zero_change_nothing(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    params, zeros = torch.ones(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    assert torch.equal(optimizer.step(zeros, optimizer.init(params), params)[0], params)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_512_micro_batches_are_all_counted(dtype: torch.dtype) -> None:
    gathering, params, ones = accumulate(sgd(1.0), 512), torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    state = gathering.init(params)
    for _ in range(512):
        params, state = gathering.step(ones, state, params)
    assert params.tolist() == [-1.0]


# --- Far numbers ----------------------------------------------------------------------------------------------------------

FAR: Final = [
    (torch.float64, 1e200),
    (torch.float64, 1e-200),
    (torch.float32, 1e20),
    (torch.float32, 3e38),
    (torch.float32, 1e-30),
    (torch.float32, 1e-42),
    (torch.bfloat16, 1e38),
    (torch.bfloat16, 1e-30),
    (torch.float16, 6e4),
    (torch.float16, 1e-7),
]


@pytest.mark.parametrize(("dtype", "size"), FAR)
def test_norms_of_far_numbers(dtype: torch.dtype, size: float) -> None:
    parts = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.zeros(0, dtype=torch.float64), torch.tensor([[4.0]]).double()]
    tensors = [(part * (size / 5)).to(dtype) for part in parts]
    expected = math.hypot(*(float(number) for tensor in tensors for number in tensor.flatten()))
    for actual in (tree.norm(tensors), make_fx(tree.norm, tracing_mode="fake")(tensors)(tensors)):
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert actual.item() == pytest.approx(expected, rel=2e-6)
    clip, subnormal = clip_by_global_norm(expected / 2), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for clipped, tensor in zip(clip.update(tensors, clip.init(tensors), tensors)[0], tensors, strict=True):
        assert torch.allclose(clipped.double(), tensor.double() / 2, rtol=2 * torch.finfo(dtype).eps, atol=subnormal)


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_clipped_step_of_far_numbers_is_no_lost_one(size: float) -> None:
    params, grads = torch.zeros(2), torch.full((2,), size)
    clipped, _ = clip_by_global_norm(1.0).update(grads, clip_by_global_norm(1.0).init(params), params)
    assert clipped.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_norms_of_nothing_nan_and_infinity() -> None:
    for dtype in DTYPES:
        assert tree.norm(torch.zeros(3, dtype=dtype)).item() == 0
        assert tree.norm(torch.zeros(0, dtype=dtype)).item() == 0
        assert tree.norm(torch.tensor([1.0, math.inf], dtype=dtype)).item() == math.inf
        assert tree.norm(torch.tensor([1.0, math.nan], dtype=dtype)).isnan()


def test_lion_hides_no_nan() -> None:
    optimizer, params, grads = lion(0.1), torch.zeros(5), torch.tensor([math.nan, math.inf, 2.0, 0.0, -1e-42])
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert updates[:2].isnan().all()
    assert updates[2:].tolist() == pytest.approx([-0.1, 0.0, 0.1])
    assert optimizer.update(torch.ones(5), state, params)[0].isnan().tolist() == [True, True, False, False, False]


# --- Layouts and kinds of tensors -----------------------------------------------------------------------------------------


def layouts(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor of four axes in other layouts of memory."""
    yield tensor.transpose(0, 3).contiguous().transpose(0, 3)
    yield torch.stack([tensor, tensor], dim=-1)[..., 0]
    yield tensor.contiguous(memory_format=torch.channels_last)
    yield torch.cat([tensor.flatten(), tensor.flatten()])[tensor.numel() :].view(tensor.shape)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_layout_of_anything_is_all_one(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    params, grads = (torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    state = optimizer.init((params,))
    for _ in range(2):
        _, state = optimizer.step((grads,), state, (params,))
    expected = optimizer.step((grads,), state, (params,))
    leaves, structure = tree.flatten(state)
    moved = [[leaf if leaf is None or leaf.ndim < 4 else other(leaf) for leaf in leaves] for other in map(_layout, range(4))]
    states = [tree.unflatten(structure, flat) for flat in moved]
    given = [(grads, state, other) for other in layouts(params)]
    given += [(other, state, params) for other in layouts(grads)]
    given += [(grads, other_state, params) for other_state in states]
    tolerance, near = max(4 * torch.finfo(dtype).eps, 1e-12), [leaf.abs() + 0.01 for leaf in tree.leaves(expected)]
    for grad, before, leaf in given:
        results = optimizer.step((grad,), before, (leaf,))
        assert_alike(tree.leaves(results), tree.leaves(expected), tolerance, near)
    constant = torch.ones((), dtype=dtype).expand(2, 3, 4, 5)
    expanded = optimizer.step((constant,), state, (params,))
    expected = optimizer.step((constant.contiguous(),), state, (params,))
    assert_alike(tree.leaves(expanded), tree.leaves(expected), tolerance, tree.leaves(expected))


def _layout(place: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: [*layouts(tensor)][place]


@every_optimizer
@every_dtype
def test_empty_tensors_and_such_without_axes(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    params = [torch.ones((), dtype=dtype), torch.ones((0, 3), dtype=dtype), torch.ones((1, 1), dtype=dtype)]
    stepped, state = optimizer.step(params, optimizer.init(params), params)
    stepped, _ = optimizer.step(params, state, stepped)
    assert [(leaf.shape, leaf.dtype) for leaf in stepped] == [(leaf.shape, leaf.dtype) for leaf in params]
    assert all(bool(leaf.isfinite().all()) for leaf in stepped)
    only = [torch.ones((0, 3), dtype=dtype)]
    assert tree.equal(optimizer.step(only, optimizer.init(only), only)[0], only)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_params_that_no_optimizer_learns_are_refused(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"params\[1\] is .*\[2\], but optimizers update real floating-point tensors of 16"):
        optimizer.init((torch.ones(2), torch.zeros(2).to(dtype)))


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda pairs: defaultdict(list, pairs)])
@pytest.mark.parametrize("optimizer", [sgd(0.1, momentum=0.9), adam(0.1)], ids=repr)
def test_dicts_of_all_kinds_stay_what_they_are(
    optimizer: AnyTransform, kind: Callable[[list[tuple[str, Tensor]]], dict[str, Tensor]]
) -> None:
    pairs = [("weight", torch.ones(2, 3)), ("bias", torch.zeros(3))]
    params = kind(pairs)
    expected, _ = optimizer.step(dict(pairs), optimizer.init(dict(pairs)), dict(pairs))
    stepped, state = optimizer.step(params, optimizer.init(params), params)
    assert type(stepped) is type(params)
    assert [*stepped] == [*params]
    assert tree.equal(dict(stepped), expected)
    again, _ = optimizer.step(kind(pairs[::-1]), state, stepped)  # in another order
    assert type(again) is type(params)


# --- Many steps -----------------------------------------------------------------------------------------------------------


def test_a_count_goes_on_where_float32_knows_no_next_number() -> None:
    transform: AnyTransform = scale_by_adam(beta1=0.0, beta2=1 - 1e-8)
    params = grads = (torch.ones(2), torch.ones(2))
    count = 2**24 + 1
    moments = (torch.full((2,), 1e-3),) * 2
    state: State[tuple[Tensor, Tensor], object] = transform.init(params)
    leaves, structure = tree.flatten(state)
    assert len(leaves) == 5
    state = tree.unflatten(structure, [torch.tensor(count), *moments, *moments])
    updates = params
    for step in range(1, 4):
        updates, state = transform.update(grads, state, params)
        assert tree.leaves(state)[0].item() == count + step
    bias = -math.expm1((count + 3) * math.log1p(-1e-8))
    assert updates[0][0].item() == pytest.approx(1 / math.sqrt((1e-3 + 3e-8) / bias), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [adam, lambda rate: sgd(rate, momentum=0.5)], ids=["adam", "sgd"])
def test_20000_steps_of_a_schedule(optimizer: Callable[[Schedule], AnyTransform]) -> None:
    steps = 20_000
    descending = optimizer(linear_schedule(1e-3, 0.0, steps))
    params, grads = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    state, memory = descending.init(params), begin(descending, [params], [""])
    place = 0.0
    for _ in range(steps):
        place += float(formula(descending, [grads], memory, [params])[0])
        params, state = descending.step(grads, state, params)
    assert params.item() == pytest.approx(place, rel=1e-9)
    assert tree.equal(descending.step(grads, state, params)[0], params)  # the rate is 0
