"""Optimizers: each against torch.optim or its formula, all against the contract of a transform."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.lr_scheduler import StepLR
from typing_extensions import override

import fundl
from fundl import (
    Linear,
    Rate,
    Record,
    Search,
    State,
    Tensors,
    Transform,
    accumulate,
    adagrad,
    adam,
    adamw,
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    compose,
    cosine_schedule,
    dynamic_loss_scale,
    ema,
    is_matrix,
    linear,
    lion,
    momentum,
    rmsprop,
    scale,
    scale_by_adagrad,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_rms,
    sgd,
    step_schedule,
    trace,
    tree,
)
from fundl.optim._fused import Columns, can_fuse
from fundl.optim.chain import AnyTransform
from tests.face import PUBLIC
from tests.optimizer_samples import OPTIMIZERS

P = TypeVar("P")
S = TypeVar("S")

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@attrs.frozen(eq=False)
class Affine(Record):
    """All that the parameters of a layer can be: a tensor, None, a buffer, a static field."""

    weight: Tensor
    bias: Tensor | None
    mean: Tensor | None = attrs.field(default=None, metadata=tree.BUFFER)
    size: int = 3


Params = tuple[Affine, dict[str, Tensor | tuple[Affine, ...]]]


def sample_params(seed: int = 0, dtype: torch.dtype = torch.float64) -> Params:
    """A nested tree: matrices, vectors, a number, None, and buffers of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    inner = Affine(draw(2, 3, 2), None, mean=torch.tensor([3, 1]))
    return Affine(draw(3, 4), draw(3), mean=draw(3)), {"scale": draw(), "layers": (inner, Affine(draw(1, 5), draw(1)))}


def sample_grads(count: int, dtype: torch.dtype = torch.float64) -> list[Params]:
    return [sample_params(seed, dtype) for seed in range(1, count + 1)]


def run(optimizer: Transform[S], params: P, grads: Sequence[P]) -> tuple[P, State[P, S]]:
    """The params and the state after a step for each gradient."""
    state = optimizer.init(params)
    for grad in grads:
        params, state = optimizer.step(grad, state, params)
    return params, state


def distance(first: object, second: object) -> float:
    """The greatest difference between any elements of two trees, which must be of one structure and of the same dtypes."""
    first_leaves, structure = tree.flatten(first)
    second_leaves, second_structure = tree.flatten(second)
    assert structure == second_structure
    greatest = 0.0
    for one, other in zip(first_leaves, second_leaves, strict=True):
        if one is not None and other is not None and one.numel() > 0:
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            greatest = max(greatest, float((one.to(torch.float64) - other.to(torch.float64)).abs().max()))
    return greatest


# --- Against torch.optim ------------------------------------------------------------------------------------------------

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

COUNTERPARTS: Final[Mapping[str, tuple[AnyTransform, Make]]] = {
    "sgd": (sgd(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd: momentum": (momentum(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "sgd: nesterov": (
        momentum(0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    "sgd: all options": (
        sgd(0.1, momentum=0.7, dampening=0.3, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7, dampening=0.3, weight_decay=0.05),
    ),
    "sgd: dampening without momentum": (
        sgd(0.1, dampening=0.3),
        lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.3),
    ),
    "sgd: maximize": (
        chain(scale(-1.0), sgd(0.1, momentum=0.9)),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, maximize=True),
    ),
    "adam": (adam(0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam: options": (
        adam(0.1, beta1=0.5, beta2=0.7, epsilon=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.1),
    ),
    "adam: amsgrad": (
        adam(0.1, beta2=0.7, amsgrad=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.7), amsgrad=True, weight_decay=0.1),
    ),
    "adam: without memory": (adam(0.1, beta1=0.0, beta2=0.0), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.0))),
    "adam: maximize": (chain(scale(-1.0), adam(0.1)), lambda p: torch.optim.Adam(p, lr=0.1, maximize=True)),
    "adamw": (adamw(0.1), lambda p: torch.optim.AdamW(p, lr=0.1)),
    "adamw: options": (
        adamw(0.1, beta1=0.5, beta2=0.7, epsilon=1e-3, weight_decay=0.3, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.3, amsgrad=True),
    ),
    "adamw: matrices": (
        adamw(0.1, weight_decay=0.3, where=is_matrix),
        lambda p: torch.optim.AdamW(
            [
                {"params": [leaf for leaf in p if leaf.ndim >= 2], "weight_decay": 0.3},
                {"params": [leaf for leaf in p if leaf.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.1,
        ),
    ),
    "rmsprop": (rmsprop(0.1), lambda p: torch.optim.RMSprop(p, lr=0.1)),
    "rmsprop: options": (
        rmsprop(0.1, decay=0.7, epsilon=1e-3, momentum=0.8, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.7, eps=1e-3, momentum=0.8, weight_decay=0.1),
    ),
    "rmsprop: centered": (
        rmsprop(0.1, decay=0.7, epsilon=1e-3, momentum=0.8, centered=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.7, eps=1e-3, momentum=0.8, centered=True),
    ),
    "adagrad": (adagrad(0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "adagrad: options": (
        adagrad(0.1, rate_decay=0.2, initial=0.5, epsilon=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adagrad(
            p, lr=0.1, lr_decay=0.2, initial_accumulator_value=0.5, eps=1e-3, weight_decay=0.1
        ),
    ),
}  # fmt: skip


def torch_run(make: Make, params: Params, grads: Sequence[Params], *, every: int | None = None) -> list[Tensor]:
    """The trainable leaves after a step of torch.optim for each gradient, with a StepLR if `every` is given."""
    leaves = [leaf.clone().requires_grad_() for leaf in tree.trainable_leaves(params)]
    optimizer = make(leaves)
    scheduler = StepLR(optimizer, step_size=every) if every is not None else None
    for grad in grads:
        for leaf, part in zip(leaves, tree.trainable_leaves(grad), strict=True):
            leaf.grad = part.clone()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [leaf.detach() for leaf in leaves]


@pytest.mark.parametrize(("optimizer", "make"), COUNTERPARTS.values(), ids=COUNTERPARTS.keys())
def test_fifty_steps_equal_torchs(optimizer: AnyTransform, make: Make) -> None:
    grads = sample_grads(50)
    expected = torch_run(make, sample_params(), grads)

    params, _ = run(optimizer, sample_params(), grads)
    assert distance(tree.trainable_leaves(params), expected) < 1e-10

    params, state = sample_params(), optimizer.init(sample_params())
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = apply_updates(params, updates)
    assert distance(tree.trainable_leaves(params), expected) < 1e-10


@pytest.mark.parametrize(
    ("scheduled", "make"),
    [
        (lambda rate: sgd(rate, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (adam, lambda p: torch.optim.Adam(p, lr=0.1)),
        (adamw, lambda p: torch.optim.AdamW(p, lr=0.1)),
        (rmsprop, lambda p: torch.optim.RMSprop(p, lr=0.1)),
        (adagrad, lambda p: torch.optim.Adagrad(p, lr=0.1)),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop", "adagrad"],
)
def test_a_schedule_counts_the_steps(scheduled: Callable[[Rate], AnyTransform], make: Make) -> None:
    grads = sample_grads(20)
    params, _ = run(scheduled(step_schedule(0.1, every=6)), sample_params(), grads)
    expected = torch_run(make, sample_params(), grads, every=6)
    assert distance(tree.trainable_leaves(params), expected) < 1e-10


def test_lion_follows_its_formula() -> None:
    beta1, beta2, rate, decay = 0.8, 0.95, 0.1, 0.2
    params, grads = sample_params(), sample_grads(50)
    actual, _ = run(lion(rate, beta1=beta1, beta2=beta2, weight_decay=decay), params, grads)
    expected = []
    for leaf, *gradients in zip(*(tree.trainable_leaves(each) for each in (params, *grads)), strict=True):
        p, m = leaf, torch.zeros_like(leaf)
        for g in gradients:
            p = p - rate * (torch.sign(beta1 * m + (1 - beta1) * g) + decay * p)
            m = beta2 * m + (1 - beta2) * g
        expected.append(p)
    assert distance(tree.trainable_leaves(actual), expected) < 1e-10


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_clip_by_global_norm_bounds_the_norm_of_all(factor: float) -> None:
    grads = tree.map(lambda leaf: factor * leaf, sample_grads(1)[0])
    clip = clip_by_global_norm(0.5)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    squares = sum(float((leaf**2).sum()) for leaf in tree.trainable_leaves(grads))
    shrink = min(1.0, 0.5 / math.sqrt(squares))
    expected = [shrink * leaf for leaf in tree.trainable_leaves(grads)]
    assert distance(tree.trainable_leaves(clipped), expected) < 1e-12
    if shrink == 1.0:
        assert tree.equal(clipped, grads)


def test_clip_by_global_norm_hides_no_nan() -> None:
    grads = (torch.tensor([1.0, math.nan]), torch.ones(2))
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert all(bool(leaf.isnan().all()) for leaf in clipped)


def test_clip_by_value_bounds_each_element() -> None:
    grads = sample_grads(1)[0]
    clipped, _ = clip_by_value(0.5).update(grads, clip_by_value(0.5).init(grads), grads)
    expected = [leaf.clamp(-0.5, 0.5) for leaf in tree.trainable_leaves(grads)]
    assert tree.equal(tree.trainable_leaves(clipped), expected)


def test_centered_rms_survives_gradients_that_are_all_alike() -> None:
    grads = (torch.full((5,), 0.1),)
    params, _ = run(rmsprop(1e-4, centered=True, decay=0.5), grads, [grads] * 200)
    assert bool(params[0].isfinite().all())


# --- The grammar --------------------------------------------------------------------------------------------------------

CHAINS: Final[Mapping[str, tuple[AnyTransform, AnyTransform]]] = {
    "adam": (
        adam(0.1, beta1=0.8, epsilon=1e-4, weight_decay=0.2),
        chain(add_decayed_weights(0.2), scale_by_adam(beta1=0.8, epsilon=1e-4), scale_by_learning_rate(0.1)),
    ),
    "adamw": (
        adamw(cosine_schedule(0.1, 5), weight_decay=0.2, where=is_matrix, amsgrad=True),
        chain(
            scale_by_adam(amsgrad=True),
            add_decayed_weights(0.2, where=is_matrix),
            scale_by_learning_rate(cosine_schedule(0.1, 5)),
        ),
    ),
    "scale": (chain(scale_by_adam(), scale(-0.1)), adam(0.1)),
    "one": (chain(sgd(0.1)), sgd(0.1)),
    "nested": (chain(clip_by_value(1.0), chain(trace(0.9), scale(-0.1))), chain(clip_by_value(1.0), momentum(0.1))),
    "six": (chain(*[scale(-0.5)] * 6, scale_by_learning_rate(1.0)), sgd(0.5**6)),
}


@pytest.mark.parametrize(("alias", "parts"), CHAINS.values(), ids=CHAINS.keys())
def test_an_alias_is_a_chain(alias: AnyTransform, parts: AnyTransform) -> None:
    grads = sample_grads(8)
    assert distance(run(alias, sample_params(), grads)[0], run(parts, sample_params(), grads)[0]) < 1e-12


def test_aliases_that_are_plain_chains_are_equal_to_them() -> None:
    assert lion(0.1, weight_decay=0.2) == chain(scale_by_lion(), add_decayed_weights(0.2), scale_by_learning_rate(0.1))
    assert rmsprop(0.1, centered=True) == chain(
        add_decayed_weights(0.0), scale_by_rms(centered=True), trace(0.0), scale_by_learning_rate(0.1)
    )
    assert adagrad(0.1) == chain(add_decayed_weights(0.0), scale_by_adagrad(), scale_by_learning_rate(0.1))


def test_where_is_asked_once_for_each_trainable_leaf() -> None:
    asked: list[str] = []

    def where(path: str, leaf: Tensor) -> bool:
        asked.append(path)
        return path.endswith(".weight") and leaf.ndim == 2

    params, grads = sample_params(), sample_grads(1)[0]
    decay = add_decayed_weights(0.1, where=where)
    _, state = decay.update(grads, decay.init(params), params)
    updates, state = decay.update(grads, state, params)
    assert asked == tree.trainable_paths(params)
    assert state.inner.mask == (True, False, False, True, False, False)
    leaves = zip(tree.trainable_leaves(grads), tree.trainable_leaves(params), strict=True)
    expected = [grad + 0.1 * leaf if leaf.ndim == 2 else grad for grad, leaf in leaves]
    assert distance(tree.trainable_leaves(updates), expected) < 1e-12


# --- All against the contract -------------------------------------------------------------------------------------------


def test_every_transform_has_a_sample() -> None:
    def makes_a_transform(function: object) -> bool:
        if not inspect.isfunction(function):
            return False
        result = inspect.signature(function).return_annotation
        origin = getattr(result, "__origin__", result)
        return isinstance(origin, type) and issubclass(origin, Transform) and not issubclass(origin, Search)

    public = {name for name in PUBLIC if makes_a_transform(getattr(fundl, name))}
    assert public == {name.partition(":")[0] for name in OPTIMIZERS}


@every_optimizer
def test_step_is_update_and_apply_updates(optimizer: AnyTransform) -> None:
    params, state = sample_params(), optimizer.init(sample_params())
    for grad in sample_grads(5):
        stepped, step_state = optimizer.step(grad, state, params)
        updates, state = optimizer.update(grad, state, params)
        params = apply_updates(params, updates)
        assert distance(stepped, params) < 1e-12
        assert distance(step_state, state) < 1e-12


@every_optimizer
@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_a_trace_goes_on_as_eager_steps_do(optimizer: AnyTransform, mode: Literal["fake", "symbolic"]) -> None:
    params = sample_params()
    first = optimizer.init(params)
    leaves, structure = tree.flatten((sample_grads(1)[0], first, params))
    tensors = [leaf for leaf in leaves if leaf is not None]

    def refill(given: Sequence[Tensor]) -> tuple[Params, State[Params, object], Params]:
        filling: Iterator[Tensor] = iter(given)
        return tree.unflatten(structure, [None if leaf is None else next(filling) for leaf in leaves])

    def flat_step(*given: Tensor) -> list[Tensor]:
        return tree.leaves(optimizer.step(*refill(given)))

    traced: Callable[..., list[Tensor]] = make_fx(flat_step, tracing_mode=mode)(*tensors)  # type: ignore[explicit-any]
    state = first
    for grad in sample_grads(4):
        result = traced(*tree.leaves((grad, state, params)))
        params, state = optimizer.step(grad, state, params)
        assert distance(result, tree.leaves((params, state))) < 1e-12


@every_optimizer
def test_nothing_that_is_given_changes(optimizer: AnyTransform) -> None:
    params = sample_params()
    state = run(optimizer, params, sample_grads(3))[1]
    grads = sample_grads(1)[0]
    given = (params, state, grads)
    before = tree.map(torch.clone, given)
    first = optimizer.step(grads, state, params)
    optimizer.update(grads, state, params)
    assert tree.equal(given, before)
    assert tree.equal(optimizer.step(grads, state, params), first)


@every_optimizer
def test_no_memory_is_shared_between_params_and_state(optimizer: AnyTransform) -> None:
    params = sample_params()
    for stepped, state in ((params, optimizer.init(params)), run(optimizer, params, sample_grads(3))):
        places = [leaf.data_ptr() for leaf in tree.leaves((stepped, state)) if leaf.numel() > 0]
        assert len(places) == len(set(places))


@every_optimizer
def test_buffers_and_none_stay(optimizer: AnyTransform) -> None:
    params = sample_params()
    stepped, _ = run(optimizer, params, sample_grads(3))
    inner, old = stepped[1]["layers"], params[1]["layers"]
    assert stepped[0].mean is params[0].mean
    assert isinstance(inner, tuple)
    assert isinstance(old, tuple)
    assert inner[0].mean is old[0].mean
    assert inner[0].bias is None
    assert inner[1].mean is None


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtypes_stay(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    params, grads = sample_params(dtype=dtype), sample_grads(3, dtype)
    state = optimizer.init(params)
    updates, _ = optimizer.update(grads[0], state, params)
    stepped, last = run(optimizer, params, grads)

    def dtypes(of: object) -> list[torch.dtype]:
        return [leaf.dtype for leaf in tree.leaves(of)]

    assert dtypes(updates) == dtypes(stepped) == dtypes(params)
    assert dtypes(last) == dtypes(state)
    expected, _ = run(optimizer, sample_params(), sample_grads(3))
    # bfloat16 has 8 bits; where the sign of a small number decides, nothing holds
    if "lion" not in repr(optimizer).lower():
        tolerance = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 0.2}[dtype]
        assert distance(tree.cast_to(stepped, torch.float64), expected) <= tolerance


@every_optimizer
def test_dtypes_may_differ_from_leaf_to_leaf(optimizer: AnyTransform) -> None:
    params = (torch.ones(2, 2, dtype=torch.float64), torch.ones(3), torch.ones((), dtype=torch.bfloat16))
    stepped, state = run(optimizer, params, [params] * 3)
    assert [leaf.dtype for leaf in stepped] == [torch.float64, torch.float32, torch.bfloat16]
    assert [leaf.dtype for leaf in tree.leaves(state)] == [leaf.dtype for leaf in tree.leaves(optimizer.init(params))]


@every_optimizer
def test_the_layout_of_memory_is_all_one(optimizer: AnyTransform) -> None:
    params, grads = (torch.arange(12.0).reshape(3, 4).to(torch.float64),), (torch.randn(3, 4, dtype=torch.float64),)
    transposed = (params[0].t().contiguous().t(),)
    expected, _ = run(optimizer, params, [grads] * 3)
    assert distance(run(optimizer, params, [(grads[0].t().contiguous().t(),)] * 3)[0], expected) < 1e-12
    assert distance(run(optimizer, transposed, [grads] * 3)[0], expected) < 1e-12
    constant = (torch.ones((), dtype=torch.float64).expand(3, 4),)
    expected, _ = run(optimizer, params, [(torch.ones(3, 4, dtype=torch.float64),)] * 3)
    assert distance(run(optimizer, params, [constant] * 3)[0], expected) < 1e-12


@every_optimizer
def test_the_state_is_a_tree(optimizer: AnyTransform) -> None:
    params, state = run(optimizer, sample_params(), sample_grads(3))
    leaves, structure = tree.flatten(state)
    again = tree.unflatten(structure, [None if leaf is None else leaf.clone() for leaf in leaves])
    grads = sample_grads(4)[-1]
    assert tree.equal(again, state)
    assert tree.equal(optimizer.step(grads, again, params), optimizer.step(grads, state, params))
    assert tree.misplaced_tensors(state) == []


@every_optimizer
def test_it_works_on_the_meta_device(optimizer: AnyTransform) -> None:
    params = tree.move_to(sample_params(), "meta")
    stepped, state = run(optimizer, params, [params] * 2)
    assert all(leaf.is_meta for leaf in tree.leaves((stepped, state)))
    assert tree.equal(stepped, params)


@every_optimizer
def test_it_is_a_value(optimizer: AnyTransform) -> None:
    twin = copy.deepcopy(optimizer)
    assert twin == optimizer
    assert hash(twin) == hash(optimizer)
    assert all(other != optimizer for other in OPTIMIZERS.values() if other is not optimizer)
    names: Sequence[str] = type(optimizer).__slots__
    for name in names:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(optimizer, name, None)


@every_optimizer
def test_no_tape_is_recorded(optimizer: AnyTransform) -> None:
    params = tree.map(lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, sample_params())
    grads = sample_grads(1)[0]
    state = optimizer.init(params)
    updates, _ = optimizer.update(grads, state, params)
    moved, next_state = optimizer.step(grads, state, params)
    made = tree.trainable_leaves((updates, moved, apply_updates(params, updates), state, next_state))
    assert not any(leaf.requires_grad for leaf in made)
    with torch.inference_mode():
        assert tree.equal(optimizer.step(grads, state, params), (moved, next_state))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@every_optimizer
def test_it_is_the_same_on_an_accelerator(optimizer: AnyTransform) -> None:
    params, state = run(optimizer, sample_params(), sample_grads(5))
    on_device = run(optimizer, tree.move_to(sample_params(), "cuda"), tree.move_to(sample_grads(5), "cuda"))
    assert distance(tree.move_to(on_device, "cpu"), (params, state)) < 1e-6  # its fused kernels read float32 rates


def test_the_fused_kernel_is_for_plain_tensors_of_one_kind() -> None:
    plain = (torch.ones(2, 3), torch.ones(3))
    columns = Columns(plain, plain, plain, plain, ())
    assert can_fuse(*columns)
    assert can_fuse(*columns._replace(max_second_moment=plain))
    others: list[Tensors] = [
        (torch.ones(3, 2).t(), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(3).expand(3)[:1].expand(3)),
        (torch.ones(2, 3), torch.ones(1)),
        (torch.ones(2, 3), torch.ones(3, dtype=torch.float64)),
        (torch.ones(2, 3, device="meta"), torch.ones(3, device="meta")),
        (torch.ones(2, 3),),
    ]
    for other in others:
        for name in Columns._fields:
            assert not can_fuse(*Columns(**{**columns._asdict(), name: other})), name
    with FakeTensorMode():
        assert not can_fuse(*columns)


def test_a_whole_model_is_optimized() -> None:
    model = compose(linear(2, 3), compose(linear(3, 3, bias=False), linear(3, 1)))
    filled = tree.map(lambda leaf: torch.ones(leaf.shape), model)
    stepped, _ = run(sgd(0.5), filled, [filled])
    assert tree.equal(stepped, tree.map(lambda leaf: torch.full(leaf.shape, 0.5), model))
    assert isinstance(stepped[1][0], Linear)
    assert stepped[1][0].bias is None


def test_apply_updates_adds() -> None:
    params, updates = sample_params(1), sample_params(2)
    moved = apply_updates(params, updates)
    expected = tree.map(torch.add, tree.trainable_leaves(params), tree.trainable_leaves(updates))
    assert tree.equal(tree.trainable_leaves(moved), expected)
    assert moved[0].mean is params[0].mean


# --- Accumulation -------------------------------------------------------------------------------------------------------

Fit = dict[str, Tensor]


def squares_grad(params: Fit, x: Tensor, y: Tensor) -> Fit:
    """The gradient of the mean over the examples of (x w + b - y)^2."""
    error = 2 * (x @ params["w"] + params["b"] - y) / len(x)
    return {"b": error.sum(), "w": x.t() @ error}


@pytest.mark.parametrize("inner", [sgd(0.1, momentum=0.9), adamw(cosine_schedule(0.1, 5)), rmsprop(0.1)], ids=repr)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_unequal_micro_batches_are_one_large_batch(inner: AnyTransform, as_tensor: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((4, 20, 3), (4, 20)))
    start: Fit = {"b": torch.zeros((), dtype=torch.float64), "w": torch.zeros(3, dtype=torch.float64)}
    sizes = (2, 11, 7)

    large, large_state = start, inner.init(start)
    gathering = accumulate(inner, len(sizes))
    small, state = start, gathering.init(start)
    for batch_x, batch_y in zip(x, y, strict=True):
        large, large_state = inner.step(squares_grad(large, batch_x, batch_y), large_state, large)
        for part_x, part_y in zip(batch_x.split(sizes), batch_y.split(sizes), strict=True):
            weight = torch.tensor(len(part_x)) if as_tensor else len(part_x)
            small, state = gathering.step(squares_grad(small, part_x, part_y), state, small, weight=weight)
        assert distance(small, large) < 1e-12
        assert distance(state.inner.inner, large_state.inner) < 1e-12


@every_optimizer
def test_nothing_moves_until_the_last_micro_batch(optimizer: AnyTransform) -> None:
    gathering = accumulate(optimizer, 3)
    params, grads = sample_params(), sample_grads(6)
    state = gathering.init(params)
    for place, grad in enumerate(grads):
        before = state
        updates, _ = gathering.update(grad, before, params)
        moved, state = gathering.step(grad, before, params)
        if place % 3 == 2:
            mean = tree.map(lambda *parts: sum(parts) / 3, *grads[place - 2 : place + 1])
            expected, inner = optimizer.step(mean, State(before.inner.inner), params)
            assert distance((moved, state.inner.inner), (expected, inner.inner)) < 1e-12
            assert float(state.inner.weight) == float(state.inner.count) == 0
        else:
            assert tree.equal(moved, params)
            assert tree.equal(state.inner.inner, before.inner.inner)
            assert all(not leaf.any() for leaf in tree.trainable_leaves(updates))
        params = moved


def test_a_gradient_that_is_not_finite_spoils_one_step_only() -> None:
    gathering = accumulate(sgd(1.0), 2)
    params = (torch.zeros(1),)
    state = gathering.init(params)
    seen = []
    for grad in (math.inf, 1.0, 3.0, 1.0):
        moved, state = gathering.step((torch.tensor([grad]),), state, params)
        seen.append(moved[0].item())
    assert seen == [0.0, -math.inf, 0.0, -2.0]


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_weights_are_positive(weight: float) -> None:
    gathering = accumulate(sgd(1.0), 2)
    params = torch.zeros(1)
    for call in (gathering.step, gathering.update):
        with pytest.raises(ValueError, match=f"weight of a micro-batch is a finite number above 0, not {weight}"):
            call(params, gathering.init(params), params, weight=weight)
        with pytest.raises(ValueError, match=r"one number: a tensor without axes, not float32\[2\]"):
            call(params, gathering.init(params), params, weight=torch.ones(2))


# --- Mistakes -----------------------------------------------------------------------------------------------------------

BAD: Final[Mapping[str, Callable[[], object]]] = {
    r"the learning rate must be a finite number of 0 or more, or a schedule, not nan": lambda: sgd(math.nan),
    r"the learning rate must be a finite number of 0 or more, or a schedule, not -0\.1": lambda: adam(-0.1),
    r"the learning rate must be a finite number of 0 or more, or a schedule, not inf": lambda: lion(math.inf),
    r"beta1 must be in \[0, 1\), not 1\.0": lambda: adam(0.1, beta1=1.0),
    r"beta2 must be in \[0, 1\), not -0\.5": lambda: adamw(0.1, beta2=-0.5),
    r"beta2 must be in \[0, 1\), not nan": lambda: lion(0.1, beta2=math.nan),
    r"epsilon must be a finite number of 0 or more, not -1e-08": lambda: scale_by_adam(epsilon=-1e-8),
    r"weight_decay must be a finite number of 0 or more, not -1\.0": lambda: adamw(0.1, weight_decay=-1.0),
    r"weight_decay must be a finite number of 0 or more, not nan": lambda: sgd(0.1, weight_decay=math.nan),
    r"weight_decay must be a finite number of 0 or more, not -2\.0": lambda: add_decayed_weights(-2.0),
    r"rate_decay must be a finite number of 0 or more, not -1\.0": lambda: adagrad(0.1, rate_decay=-1.0),
    r"the learning rate must be a finite number of 0 or more, or a schedule, not -1\.0": lambda: adagrad(-1.0, rate_decay=0.1),
    r"momentum must be in \[0, 1\), not -0\.9": lambda: momentum(0.1, momentum=-0.9),
    r"momentum must be in \[0, 1\), not 1\.0": lambda: rmsprop(0.1, momentum=1.0),
    r"dampening must be in \[0, 1\], not inf": lambda: trace(0.9, dampening=math.inf),
    r"nesterov needs a momentum above 0 and no dampening, not momentum=0\.0 and": lambda: sgd(0.1, nesterov=True),
    r"^decay must be in \[0, 1\), not 1\.5": lambda: rmsprop(0.1, decay=1.5),
    r"initial must be a finite number of 0 or more, not -1\.0": lambda: adagrad(0.1, initial=-1.0),
    r"^decay must be in \[0, 1\), not 1$": lambda: ema(1),
    r"give no rate_decay=0\.1 with it": lambda: adagrad(cosine_schedule(0.1, 3), rate_decay=0.1),
    r"max_norm must be a finite number above 0, not 0": lambda: clip_by_global_norm(0),
    r"limit must be a finite number above 0, not -2\.0": lambda: clip_by_value(-2.0),
    r"factor must be a finite number, not nan": lambda: scale(math.nan),
    r"steps must be 1 or more, not 0": lambda: accumulate(sgd(0.1), 0),
    r"a chain needs at least one transform": chain,
    r"the scale stays between 1 and 2\^24, so initial must too, and not be 1073741824\.0": lambda: dynamic_loss_scale(
        sgd(0.1), initial=2.0**30
    ),
    r"the scale stays between 1 and 2\^24, so initial must too, and not be 1e\+39": lambda: dynamic_loss_scale(
        sgd(0.1), initial=1e39
    ),
    r"the scale stays between 1 and 2\^24, so initial must too, and not be 0\.5": lambda: dynamic_loss_scale(
        sgd(0.1), initial=0.5
    ),
}


@pytest.mark.parametrize(("message", "make"), BAD.items())
def test_bad_hyper_parameters_are_refused(message: str, make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("the learning rate must be a number, not '0.1'", lambda: sgd("0.1")),  # type: ignore[arg-type]
        ("beta1 must be a number, not True", lambda: adam(0.1, beta1=True)),
        ("steps must be an int, not 2.0", lambda: accumulate(sgd(0.1), 2.0)),  # type: ignore[arg-type]
        ("part 1 of the chain is sgd, not a transform: call it", lambda: chain(scale(1.0), sgd)),  # type: ignore[call-overload]
        ("part 0 of the chain is 3, not a transform, such as sgd", lambda: chain(3)),  # type: ignore[call-overload]
    ],
)
def test_what_is_no_hyper_parameter_is_refused(message: str, make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        (
            (torch.ones(2), torch.ones(3)),
            (torch.ones(2),),
            TypeError,
            r"grads and params are not of the same structure: params has a leaf at \[1\] that grads lacks",
        ),
        (
            (Affine(torch.ones(2), None),),
            (Affine(torch.ones(2), torch.ones(2)),),
            TypeError,
            "grads and params are not of the same structure",
        ),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, 1)}, ValueError, r"grads\['w'\] is of shape \(2, 1\), but .* of \(2,\)"),
        (
            (Affine(torch.ones(2), None),),
            (Affine(torch.ones(2, dtype=torch.bfloat16), None),),
            TypeError,
            r"grads\[0\]\.weight is torch\.bfloat16, but params\[0\]\.weight is torch\.float32: cast one",
        ),
        (
            (torch.ones(2, device="meta"),),
            (torch.ones(2),),
            ValueError,
            r"params\[0\] has no values, only a shape: train what initialize\(key\(0\), model\) returns",
        ),
        ((torch.ones(2),), (torch.ones(2, device="meta"),), ValueError, r"grads\[0\] has no values, only a shape"),
    ],
)
def test_gradients_of_other_params_are_refused(params: object, grads: object, error: type[Exception], message: str) -> None:
    optimizers: list[AnyTransform] = [sgd(0.1), adam(0.1)]
    for optimizer in optimizers:
        state = optimizer.init(params)
        for call in (optimizer.step, optimizer.update):
            with pytest.raises(error, match=message):
                call(grads, state, params)
    with pytest.raises(error, match=message.replace("grads", "updates")):
        apply_updates(params, grads)


@every_optimizer
def test_the_state_of_other_params_is_refused(optimizer: AnyTransform) -> None:
    params, grads = (torch.ones(2, 3), torch.ones(3)), (torch.ones(2, 3), torch.ones(3))
    wide, meta = (torch.ones(2, 3), torch.ones(1)), tree.move_to(params, "meta")
    own = tree.leaves(optimizer.init(params))
    for others in (wide, meta, (torch.ones(3),)):
        foreign = optimizer.init(others)
        if tree.equal(tree.leaves(foreign), own):
            continue  # it has no state, or only a count of steps, which says nothing of the params
        for call in (optimizer.step, optimizer.update):
            with pytest.raises(ValueError, match=r"the state is of (another transform or of )?other params.*init\(params\)"):
                call(grads, foreign, params)


def test_the_message_names_the_leaf_of_the_state() -> None:
    foreign = adam(0.1).init((torch.ones(2, 3), torch.ones(1)))
    params = (torch.ones(2, 3), torch.ones(3))
    with pytest.raises(
        ValueError,
        match=r"its leaf at \[0\]\.first_moment\[1\] is float32\[1\] on cpu, where float32\[3\] on cpu is expected",
    ):
        adam(0.1).step(params, foreign, params)


def test_the_state_of_another_transform_is_refused() -> None:
    params = (torch.ones(2),)
    state = sgd(0.1, momentum=0.9).init(params)
    with pytest.raises(
        ValueError,
        match=r"the state is of another transform or of other params: .* it has a leaf at \[1\]\.trace\[0\] that init",
    ):
        adam(0.1).step(params, state, params)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"state is what init.* or the last step returned, not .*float32"):
        adam(0.1).step(params, params, params)  # type: ignore[arg-type]


def test_integer_leaves_are_refused() -> None:
    params = ({"table": Affine(torch.tensor([1, 2]), None)},)
    for init in (sgd(0.1).init, ema(0.9).init):
        with pytest.raises(
            TypeError,
            match=r"params\[0\]\['table'\]\.weight is int64\[2\], but .* attrs\.field\(metadata=tree\.BUFFER\)",
        ):
            init(params)
    with pytest.raises(TypeError, match=r"params\[0\] is complex64\[1\], but optimizers update real floating-point tensors"):
        sgd(0.1).init((torch.ones(1, dtype=torch.complex64),))


@attrs.frozen(eq=False)
class Untrained(Record):
    weight: Tensor | None
    mean: Tensor = attrs.field(metadata=tree.BUFFER)


@pytest.mark.parametrize("params", [(), {}, (Untrained(None, mean=torch.ones(2)),)], ids=repr)
def test_params_without_trainable_leaves_are_refused(params: object) -> None:
    for init in (sgd(0.1).init, ema(0.9).init):
        with pytest.raises(ValueError, match="params have no trainable leaf, so there is nothing to optimize"):
            init(params)
    with pytest.raises(ValueError, match="params have no trainable leaf"):
        apply_updates(params, params)


def test_an_error_of_ones_own_transform_comes_through() -> None:
    @attrs.frozen
    class Broken(Transform[tuple[()]]):
        @override
        def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
            return ()

        @override
        def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
            raise ArithmeticError("no updates today")

    params = torch.ones(2)
    with pytest.raises(ArithmeticError, match="no updates today"):
        Broken().step(params, Broken().init(params), params)
