"""Initialisers against their formulas and torch's, and initialize against its promises: pure, by place, complete."""

import importlib
import itertools
import math
from collections.abc import Callable
from typing import Final, Literal, Protocol, assert_type

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

from fundl import random, tree
from fundl.fan import Fans, fans
from fundl.initialization import initialize
from fundl.initializers import (
    Initializer,
    constant,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    truncated_normal,
    uniform_fan_in,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from fundl.layer import Layer
from fundl.layers.activation import SELU, LeakyReLU, ReLU, Sigmoid, Softplus, Tanh
from fundl.layers.frozen import frozen
from fundl.layers.gain import gain_of
from fundl.layers.linear import Linear, linear
from fundl.layers.structure import Identity, Residual, residual
from fundl.model import apply, compose
from fundl.random import key
from fundl.tree import BUFFER

CPU: Final = torch.device("cpu")
LIKELY: Final = 1e-3  # seeds are fixed: a p-value below this is a fault, not bad luck
SHAPES: Final = ((300, 200), (40, 30, 5, 5))


drawn: Final = settings(deadline=None, derandomize=True, max_examples=30)


class Outcome(Protocol):
    @property
    def pvalue(self) -> float: ...


class KolmogorovSmirnov(Protocol):
    def __call__(self, sample: object, cdf: object, args: tuple[float, ...] = ()) -> Outcome: ...


kolmogorov_smirnov: KolmogorovSmirnov = importlib.import_module("scipy.stats").kstest  # scipy ships no types


def fits(sample: Tensor, distribution: object, *parameters: float) -> bool:
    """Whether the Kolmogorov-Smirnov test lets the sample pass as one of the distribution."""
    reference = distribution.flatten().double().numpy() if isinstance(distribution, Tensor) else distribution
    return kolmogorov_smirnov(sample.flatten().double().numpy(), reference, parameters).pvalue > LIKELY


def draw(initializer: Initializer, shape: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return initializer(key(seed), shape, fans(shape), dtype=dtype, device=CPU)


# --- Initialisers -----------------------------------------------------------------------------------------------------

# Each initialiser with its formula: the bound of a uniform distribution, or the standard deviation of a normal one.
Formula = Callable[[Fans], float]
UNIFORM: Final[dict[str, tuple[Initializer, Formula]]] = {
    "uniform_fan_in": (uniform_fan_in(), lambda fans: 1 / math.sqrt(fans.fan_in)),
    "kaiming": (kaiming_uniform(), lambda fans: math.sqrt(6 / fans.fan_in)),
    "kaiming fan_out": (kaiming_uniform(mode="fan_out"), lambda fans: math.sqrt(6 / fans.fan_out)),
    "kaiming leaky": (kaiming_uniform(negative_slope=math.sqrt(5)), lambda fans: math.sqrt(1 / fans.fan_in)),
    "kaiming tanh": (kaiming_uniform(gain=5 / 3), lambda fans: 5 / 3 * math.sqrt(3 / fans.fan_in)),
    "xavier": (xavier_uniform(), lambda fans: math.sqrt(6 / (fans.fan_in + fans.fan_out))),
    "xavier gain": (xavier_uniform(gain=5 / 3), lambda fans: 5 / 3 * math.sqrt(6 / (fans.fan_in + fans.fan_out))),
    "lecun": (lecun_uniform(), lambda fans: math.sqrt(3 / fans.fan_in)),
}
NORMAL: Final[dict[str, tuple[Initializer, Formula]]] = {
    "kaiming": (kaiming_normal(), lambda fans: math.sqrt(2 / fans.fan_in)),
    "kaiming fan_out": (kaiming_normal(mode="fan_out"), lambda fans: math.sqrt(2 / fans.fan_out)),
    "kaiming leaky": (kaiming_normal(negative_slope=0.2), lambda fans: math.sqrt(2 / (1.04 * fans.fan_in))),
    "kaiming tanh": (kaiming_normal(gain=5 / 3), lambda fans: 5 / 3 / math.sqrt(fans.fan_in)),
    "xavier": (xavier_normal(), lambda fans: math.sqrt(2 / (fans.fan_in + fans.fan_out))),
    "xavier gain": (xavier_normal(gain=0.5), lambda fans: 0.5 * math.sqrt(2 / (fans.fan_in + fans.fan_out))),
    "lecun": (lecun_normal(), lambda fans: 1 / math.sqrt(fans.fan_in)),
    "normal": (normal(0.02), lambda _fans: 0.02),
}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_shape
@pytest.mark.parametrize(("initializer", "bound_of"), UNIFORM.values(), ids=UNIFORM.keys())
def test_uniform_draws_have_the_bound_of_their_formula(
    initializer: Initializer, bound_of: Formula, shape: tuple[int, ...]
) -> None:
    bound = bound_of(fans(shape))
    sample = draw(initializer, shape)
    assert sample.shape == shape
    assert sample.abs().max() <= bound * (1 + 1e-6)
    assert sample.abs().max() > 0.999 * bound
    assert sample.mean().abs() < 0.01 * bound
    assert sample.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert fits(sample, "uniform", -bound, 2 * bound)


@every_shape
@pytest.mark.parametrize(("initializer", "std_of"), NORMAL.values(), ids=NORMAL.keys())
def test_normal_draws_have_the_std_of_their_formula(initializer: Initializer, std_of: Formula, shape: tuple[int, ...]) -> None:
    std = std_of(fans(shape))
    sample = draw(initializer, shape)
    assert sample.shape == shape
    assert sample.mean().abs() < 0.02 * std
    assert sample.std().item() == pytest.approx(std, rel=0.02)
    assert fits(sample, "norm", 0.0, std)


def test_normal_has_a_mean() -> None:
    assert fits(draw(normal(0.5, mean=-3.0), (300, 200)), "norm", -3.0, 0.5)


def test_truncated_normal_lies_between_its_bounds_in_standard_deviations() -> None:
    sample = draw(truncated_normal(0.5, mean=1.0, low=-1.0, high=2.0), (300, 200))
    assert 0.5 <= sample.min() < 0.501
    assert 1.999 < sample.max() <= 2.0
    assert fits(sample, "truncnorm", -1.0, 2.0, 1.0, 0.5)


def test_constants() -> None:
    assert torch.equal(draw(zeros(), (2, 3)), torch.zeros(2, 3))
    assert torch.equal(draw(ones(), (2, 3)), torch.ones(2, 3))
    assert torch.equal(draw(constant(-0.5), (2, 3), dtype=torch.float64), torch.full((2, 3), -0.5, dtype=torch.float64))


ALL: Final = {
    **{f"{name}, uniform": initializer for name, (initializer, _) in UNIFORM.items()},
    **{f"{name}, normal": initializer for name, (initializer, _) in NORMAL.items()},
    "truncated_normal": truncated_normal(0.02),
    "orthogonal": orthogonal(gain=2.0),
    "constant": constant(3.0),
}
every_initializer = pytest.mark.parametrize("initializer", ALL.values(), ids=ALL.keys())


@every_initializer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_draws_are_of_the_shape_dtype_and_device_asked_for(initializer: Initializer, dtype: torch.dtype) -> None:
    shape = (6, 4, 3)
    for device in (CPU, torch.device("meta")):
        sample = initializer(key(0), shape, fans(shape), dtype=dtype, device=device)
        assert (sample.shape, sample.dtype, sample.device.type) == (shape, dtype, device.type)
        assert sample.is_contiguous()
        assert not sample.requires_grad


@every_initializer
def test_the_same_key_draws_the_same_bits_and_another_key_draws_others(initializer: Initializer) -> None:
    first = draw(initializer, (7, 5))
    assert torch.equal(first, draw(initializer, (7, 5)))
    assert torch.equal(first, draw(initializer, (7, 5), seed=1)) == (initializer == constant(3.0))


def test_initialisers_are_values() -> None:
    assert kaiming_uniform() == kaiming_uniform()
    assert hash(xavier_normal(gain=2.0)) == hash(xavier_normal(gain=2.0))
    assert zeros() == constant(0.0) != ones()
    for one, other in itertools.combinations([*dict.fromkeys(ALL.values())], 2):
        assert one != other
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(normal(), "std", 2.0)  # noqa: B010  # a plain assignment would be an error of types already


def test_zero_spread_gives_the_mean() -> None:
    for initializer in (kaiming_uniform(gain=0.0), kaiming_normal(gain=0.0), normal(0.0), truncated_normal(0.0)):
        assert torch.equal(draw(initializer, (2, 3)), torch.zeros(2, 3))


def test_a_weight_without_elements_is_drawn_too() -> None:
    for initializer in ALL.values():
        assert draw(initializer, (3, 0)).shape == (3, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normal(-0.1), r"std must be a finite number of 0 or more, not -0\.1"),
        (lambda: normal(math.nan), "std must be a finite number of 0 or more, not nan"),
        (lambda: normal(mean=math.inf), "mean must be a finite number, not inf"),
        (lambda: truncated_normal(-1.0), r"std must be a finite number of 0 or more, not -1\.0"),
        (lambda: truncated_normal(low=2.0, high=-2.0), r"low must be less than high, but low=2\.0 and high=-2\.0"),
        (lambda: xavier_uniform(gain=math.inf), "scale must be a finite number of 0 or more, not inf"),
        (lambda: orthogonal(gain=math.nan), "gain must be a finite number, not nan"),
        (
            lambda: kaiming_normal(mode="fan"),  # type: ignore[arg-type]  # the error under test
            "mode must be 'fan_in', 'fan_out' or 'fan_mean', not 'fan'",
        ),
    ],
)
def test_wrong_options_are_told(make: Callable[[], Initializer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30), (8, 3, 3, 3), (40, 2, 3)], ids=str)
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...]) -> None:
    matrix = draw(orthogonal(gain=0.5), shape, dtype=torch.float64).flatten(1)
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    torch.testing.assert_close(small @ small.t(), 0.25 * torch.eye(small.shape[0], dtype=torch.float64))


def test_orthogonal_is_q_of_a_decomposition_with_positive_diagonal() -> None:
    sample = random.normal(key(0), (9, 4), dtype=torch.float64)
    r = draw(orthogonal(), (9, 4), dtype=torch.float64).t() @ sample
    torch.testing.assert_close(r, r.triu())
    assert (r.diagonal() > 0).all()


def test_orthogonal_matrices_have_no_preferred_direction() -> None:
    entries = torch.stack([draw(orthogonal(), (3, 3), seed=seed) for seed in range(400)])[:, 0, 0]
    assert fits(entries, "uniform", -1.0, 2.0)  # a coordinate of a random point on the sphere, by Archimedes


def test_orthogonal_needs_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"two or more axes, not a parameter of shape \(3,\)") as caught:
        initialize(key(0), linear(2, 3, bias_init=orthogonal()))
    assert caught.value.__notes__ == [
        "in initialize: bias of Linear(weight=float32[3, 2], bias=float32[3], bias_init=Orthogonal(gain=1.0))"
    ]


# --- Fans and gains ---------------------------------------------------------------------------------------------------


def test_fans_are_those_of_torch() -> None:
    def check(sizes: list[int]) -> None:
        assert fans(tuple(sizes)) == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(sizes))

    drawn(given(st.lists(st.integers(1, 6), min_size=2, max_size=5))(check))()


def test_fans_need_two_axes() -> None:
    with pytest.raises(ValueError, match=r"two or more axes, \(out, in, \*kernel\), not of shape \(3,\)"):
        fans((3,))


Nonlinearity = Literal["linear", "relu", "tanh", "sigmoid", "selu"]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (ReLU(), "relu"),
        (Tanh(), "tanh"),
        (Sigmoid(), "sigmoid"),
        (SELU(), "selu"),
        (Identity(), "linear"),
        (linear(2, 3), "linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gains_are_those_of_torch(activation: Layer[Tensor], name: Nonlinearity) -> None:
    assert gain_of(activation) == torch.nn.init.calculate_gain(name)


def test_gains_of_leaky_relu_are_those_of_torch() -> None:
    def check(slope: float) -> None:
        assert gain_of(LeakyReLU(slope)) == torch.nn.init.calculate_gain("leaky_relu", slope)
        by_slope, by_gain = kaiming_normal(negative_slope=slope), kaiming_normal(gain=gain_of(LeakyReLU(slope)))
        assert by_slope.scale == pytest.approx(by_gain.scale)

    drawn(given(st.floats(0, 10))(check))()


def test_unknown_gains_are_told() -> None:
    with pytest.raises(ValueError, match=r"gains are known of ReLU, .*, not of Softplus\(\): give the initialiser a number"):
        gain_of(Softplus())
    with pytest.raises(TypeError, match=r"not the class Tanh: write Tanh\(\)"):
        gain_of(Tanh)  # type: ignore[arg-type]  # the error under test


# --- Against torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initializer", "theirs"),
    [
        (kaiming_uniform(mode="fan_out"), lambda weight: torch.nn.init.kaiming_uniform_(weight, mode="fan_out")),
        (kaiming_uniform(negative_slope=0.3), lambda weight: torch.nn.init.kaiming_uniform_(weight, a=0.3)),
        (
            kaiming_normal(gain=gain_of(Tanh())),
            lambda weight: torch.nn.init.kaiming_normal_(weight, nonlinearity="tanh"),
        ),
        (xavier_uniform(gain=2.0), lambda weight: torch.nn.init.xavier_uniform_(weight, gain=2.0)),
        (xavier_normal(), torch.nn.init.xavier_normal_),
        (truncated_normal(), torch.nn.init.trunc_normal_),
    ],
    ids=["kaiming_uniform fan_out", "kaiming_uniform leaky", "kaiming_normal", "xavier_uniform", "xavier_normal", "truncated"],
)
@every_shape
def test_draws_are_distributed_as_those_of_torch(
    initializer: Initializer, theirs: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    assert fits(draw(initializer, shape), theirs(torch.empty(shape)))


def test_a_linear_layer_is_distributed_as_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = [initialize(key(seed), linear(2, 25)) for seed in range(50)]
    theirs = [torch.nn.Linear(2, 25) for _ in range(50)]
    bound = 1 / math.sqrt(2)
    for name in ("weight", "bias"):
        sample: Tensor = torch.stack([getattr(layer, name) for layer in ours])
        reference: Tensor = torch.stack([getattr(layer, name).detach() for layer in theirs])
        assert sample[0].shape == reference[0].shape
        assert 0.99 * bound < sample.abs().max() <= bound
        assert 0.99 * bound < reference.abs().max() <= bound
        assert fits(sample, reference)


# --- initialize -------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Bag(Layer[Tensor]):
    """A layer with every kind of field: nested tuples, a buffer, an inner model, a number that is not drawn."""

    inner: tuple[Linear, ReLU]
    weights: tuple[Tensor, tuple[Tensor, None]]
    bias: Tensor | None
    mean: Tensor | None = attrs.field(metadata=BUFFER)
    count: Tensor = attrs.field(metadata=BUFFER)
    fixed: Tensor
    weights_init: Initializer = attrs.field(default=xavier_normal())
    bias_init: Initializer = attrs.field(default=uniform_fan_in())
    mean_init: Initializer = attrs.field(default=ones())
    count_init: Initializer = attrs.field(default=constant(7))

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Bag", Tensor]:
        return self, grad


def bag(*, bias: bool = True, mean: bool = True) -> Bag:
    return Bag(
        inner=(linear(2, 3), ReLU()),
        weights=(torch.empty(200, 100, device="meta"), (torch.empty(5, 3, 2, 2, device="meta"), None)),
        bias=torch.empty(1000, device="meta") if bias else None,
        mean=torch.empty(4, device="meta") if mean else None,
        count=torch.empty((), dtype=torch.int64, device="meta"),
        fixed=torch.full((2,), 0.25),
    )


def test_initialize_keeps_the_type() -> None:
    assert_type(initialize(key(0), linear(2, 3)), Linear[Literal[2], Literal[3]])
    assert_type(initialize(key(0), compose(linear(2, 3), Tanh())), tuple[Linear[Literal[2], Literal[3]], Tanh])
    nested = initialize(key(0), compose(linear(2, 3), compose(residual(linear(3, 3)), ReLU())))
    block = nested[1]
    assert_type(nested[0], Linear[Literal[2], Literal[3]])
    assert_type(block, tuple[Residual[Linear[Literal[3], Literal[3]]], ReLU])
    assert tree.flatten(nested)[1] == tree.flatten(compose(linear(2, 3), compose(residual(linear(3, 3)), ReLU())))[1]
    assert apply(nested, torch.ones(4, 2)).shape == (4, 3)


def test_initialize_changes_nothing() -> None:
    model = compose(linear(2, 3), ReLU())
    before = model[0].weight
    initialize(key(0), model)
    assert model[0].weight is before
    assert before.is_meta


def test_the_same_key_gives_the_same_model_and_initialising_again_is_the_reset() -> None:
    model = compose(linear(2, 25), Tanh(), bag(), compose(linear(25, 25), residual(linear(25, 25))))
    first = initialize(key(3), model)
    assert tree.equal(first, initialize(key(3), model))
    trained = tree.map(lambda leaf: leaf + 1, first)
    again = initialize(key(3), trained)
    assert tree.equal(again[0], first[0])
    assert tree.equal(again[3], first[3])
    assert not tree.equal(first, initialize(key(4), model))


def test_every_place_has_values_of_its_own() -> None:
    model = initialize(key(0), compose(linear(5, 5), linear(5, 5), compose(linear(5, 5), residual(linear(5, 5), linear(5, 5)))))
    leaves = [leaf.flatten()[:5] for leaf in tree.leaves(model)]
    for one, other in itertools.combinations(leaves, 2):
        assert not torch.isclose(one, other).any()


def test_what_stands_after_a_layer_does_not_change_it() -> None:
    short = initialize(key(0), compose(linear(2, 3), residual(linear(3, 3))))
    long = initialize(key(0), compose(linear(2, 3), residual(linear(3, 3)), ReLU(), linear(3, 8, bias=False)))
    assert tree.equal(short, long[:2])
    without_bias = initialize(key(0), compose(linear(2, 3, bias=False), residual(linear(3, 3))))
    assert torch.equal(without_bias[0].weight, short[0].weight)
    assert tree.equal(without_bias[1], short[1])


def test_every_field_is_drawn_by_its_initialiser() -> None:
    model = initialize(key(0), bag())
    assert model.inner[0].weight.abs().max() <= 1 / math.sqrt(2)
    assert fits(model.weights[0], "norm", 0.0, math.sqrt(2 / 300))
    assert fits(model.weights[1][0], "norm", 0.0, math.sqrt(2 / 32))
    assert model.weights[1][1] is None
    assert model.bias is not None
    assert 0.099 < model.bias.abs().max() <= 0.1  # the bias has the fans of the first leaf of two axes
    assert model.mean is not None
    assert torch.equal(model.mean, torch.ones(4))
    assert torch.equal(model.count, torch.tensor(7))
    assert torch.equal(model.fixed, torch.full((2,), 0.25))


def test_none_stays_none() -> None:
    model = initialize(key(0), bag(bias=False, mean=False))
    assert model.bias is None
    assert model.mean is None
    assert tree.equal(model.weights, initialize(key(0), bag()).weights)


def test_a_parameter_without_a_matrix_has_a_fan_of_one() -> None:
    scale = Scale(torch.empty(1000, device="meta"), weight_init=uniform_fan_in())
    assert fits(initialize(key(0), scale).weight, "uniform", -1.0, 2.0)


def test_no_parameter_is_left_without_values() -> None:
    def check(seed: int, inputs: int, outputs: int, bias: bool) -> None:
        model = initialize(key(seed), compose(linear(inputs, outputs, bias=bias), residual(linear(outputs, outputs))))
        bound = 1 / math.sqrt(min(inputs, outputs))
        for leaf in tree.leaves(model):
            assert not leaf.is_meta
            assert leaf.abs().max() <= bound

    sizes = st.integers(1, 30)
    drawn(given(st.integers(0, 2**64 - 1), sizes, sizes, st.booleans())(check))()


def test_it_never_records_a_tape() -> None:
    model = compose(linear(2, 3), Scale(torch.ones(3, requires_grad=True), weight_init=None))
    with torch.enable_grad():
        double = initialize(key(0), model, dtype=torch.float64)
    assert not any(leaf.requires_grad for leaf in tree.leaves(double))
    with torch.inference_mode():
        assert tree.equal(initialize(key(0), linear(2, 3)), initialize(key(0), linear(2, 3)))


# --- Devices and dtypes -----------------------------------------------------------------------------------------------


def test_dtype_is_that_of_the_layer_unless_given() -> None:
    half = initialize(key(0), linear(2, 3, dtype=torch.bfloat16))
    assert half.weight.dtype == torch.bfloat16
    model = initialize(key(0), bag(), dtype=torch.float64)
    assert {leaf.dtype for leaf in tree.leaves(model)} == {torch.float64, torch.int64}
    assert model.count.dtype == torch.int64
    assert model.fixed.dtype == torch.float64


def test_values_stay_on_their_device_and_shapes_go_to_the_cpu() -> None:
    assert {leaf.device for leaf in tree.leaves(initialize(key(0), bag()))} == {CPU}
    assert {leaf.device.type for leaf in tree.leaves(initialize(key(0), bag(), device="meta"))} == {"meta"}
    again = initialize(key(0), initialize(key(0), bag()), device=torch.device("meta"), dtype=torch.float16)
    assert {leaf.device.type for leaf in tree.leaves(again)} == {"meta"}
    assert again.bias is not None
    assert again.bias.dtype == torch.float16


def test_a_model_too_large_for_any_memory_can_be_initialized_on_meta() -> None:
    assert initialize(key(0), linear(10**9, 10**9), device="meta").weight.shape == (10**9, 10**9)


@attrs.frozen(eq=False)
class Many(Layer[Tensor]):
    """A layer with so many leaves that its keys are split by themselves."""

    weights: tuple[Tensor, ...]
    weights_init: Initializer = attrs.field(default=normal())

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Many", Tensor]:
        return self, grad


def test_keys_are_split_by_record_and_then_by_leaf() -> None:
    model = compose(ReLU(), bag(), residual(linear(2, 3), linear(3, 2)), Many((torch.empty(2, 3, device="meta"),) * 20))
    initialized = initialize(key(4), model)
    records = tree.records(initialized)
    own = random.split(key(4), len(records))
    assert [type(record).__name__ for record in records] == [
        "ReLU",
        "Bag",
        "Linear",
        "ReLU",
        "Residual",
        "Linear",
        "Linear",
        "Many",
    ]
    for place in (2, 5, 6):
        record = records[place]
        assert isinstance(record, Linear)
        for leaf, leaf_key in zip(tree.leaves(record), random.split(own[place], 2), strict=True):
            fan_in = record.weight.shape[1]
            drawn = uniform_fan_in()(leaf_key, tuple(leaf.shape), Fans(fan_in, 0), dtype=torch.float32, device=CPU)
            assert torch.equal(leaf, drawn)
    keys = random.split(own[7], 20)
    assert all(torch.equal(leaf, random.normal(of, (2, 3))) for leaf, of in zip(tree.leaves(records[7]), keys, strict=True))
    bias = initialized[1].bias
    assert bias is not None
    of_bias = random.split(own[1], 8)[5]  # behind the inner layers and the weights, of which one is None
    assert torch.equal(bias, random.uniform(of_bias, (1000,), low=-(fan := 100**-0.5), high=fan))


def test_models_that_are_alike_are_drawn_by_their_own_initialisers() -> None:
    """What is found of one model is used for the next: but never its values, or what is equal and not the same."""
    layers = [linear(2, 3, weight_init=constant(value)) for value in (0.0, -0.0, 1.0, 0.0)]
    signs = [initialize(key(0), layer).weight.signbit().any().item() for layer in layers]
    assert signs == [False, True, False, False]
    shapes = [
        initialize(key(0), linear(size, 3, dtype=dtype)).weight for size in (2, 5) for dtype in (torch.float32, torch.float64)
    ]
    assert [(weight.shape[1], weight.dtype) for weight in shapes] == [
        (2, torch.float32),
        (2, torch.float64),
        (5, torch.float32),
        (5, torch.float64),
    ]
    values = initialize(key(0), linear(2, 3))
    kept = [initialize(key(1), frozen(layer)).layers[0] for layer in (values, linear(2, 3), initialize(key(2), linear(2, 3)))]
    assert torch.equal(kept[0].weight, values.weight)
    assert not torch.equal(kept[1].weight, kept[2].weight)
    shared = torch.empty(3, 3, device="meta")
    tied = Bag((Linear(shared, None), ReLU()), (shared, (shared, None)), None, None, torch.tensor(1), shared)
    apart = attrs.evolve(tied, weights=(torch.empty(3, 3, device="meta"), (shared, None)))
    assert initialize(key(0), tied).weights[0].is_meta
    assert not initialize(key(0), apart).weights[0].is_meta


@attrs.frozen
class Given(Initializer):
    """Values that are given: two of these cannot be compared."""

    values: Tensor

    @override
    def __hash__(self) -> int:
        return 0

    @override
    def __call__(self, key: Tensor, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.values.to(device, dtype)


def test_initialisers_that_cannot_be_compared_are_never_taken_for_each_other() -> None:
    given = [Given(torch.full((3, 2), value)) for value in (1.0, 2.0)]
    for initializer in (*given, *given):
        model = initialize(key(0), compose(linear(2, 3, weight_init=initializer), ReLU()))
        assert torch.equal(model[0].weight, initializer.values)


def test_each_model_is_checked_until_one_like_it_was_found_to_fit() -> None:
    for _ in range(2):
        assert len(compose(linear(2, 3), linear(3, 1))) == 2
        with pytest.raises(ValueError, match="expects 4 features but layer 1"):
            compose(linear(2, 3), linear(4, 1))  # type: ignore[layer-misfit]  # the point
        with pytest.raises(ValueError, match="expects 4 features but layer 1"):
            initialize(key(0), (linear(2, 3), linear(4, 1)))  # type: ignore[layer-misfit]  # the point


# --- Initialisers of the user's own, and errors -----------------------------------------------------------------------


@attrs.frozen(eq=False)
class Scale(Layer[Tensor]):
    weight: Tensor
    weight_init: Initializer | None = None

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Scale", Tensor]:
        return Scale((grad * residuals).sum(0), self.weight_init), self.weight * grad


@attrs.frozen(eq=False)
class Loose(Layer[Tensor]):
    """One whose annotation does not say what its initialiser must be."""

    weight: Tensor
    weight_init: object = zeros

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Loose", Tensor]:
        return self.gradient((grad * residuals).sum(0)), self.weight * grad


@attrs.frozen
class Ramp(Initializer):
    """0, 1, 2, ... over the fan."""

    transposed: bool = False

    @override
    def __call__(self, key: Tensor, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        ramp = torch.arange(math.prod(shape), dtype=dtype, device=device).reshape(shape) / fans.fan_in
        return ramp.t() if self.transposed else ramp


def test_an_initialiser_of_the_users_own() -> None:
    layer = initialize(key(0), linear(2, 3, weight_init=Ramp(), bias_init=Ramp()))
    assert torch.equal(layer.weight, torch.tensor([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]))
    assert layer.bias is not None
    assert torch.equal(layer.bias, torch.tensor([0.0, 0.5, 1.0]))


def test_an_initialiser_that_draws_something_else_is_told() -> None:
    message = r"Ramp\(transposed=True\) was asked for float32\[3, 2\] on cpu, but made float32\[2, 3\] on cpu"
    with pytest.raises(TypeError, match=message):
        initialize(key(0), linear(2, 3, weight_init=Ramp(transposed=True)))


def test_a_parameter_without_values_and_initialiser_is_told() -> None:
    model = compose(linear(2, 3), compose(Tanh(), residual(Scale(torch.empty(3, device="meta")))))
    message = (
        r"model\[1\]\[1\]\.layers\[0\]\.weight has no values, and Scale does not say how to draw them: give Scale the field"
        r" `weight_init: Initializer = zeros\(\)`"
    )
    with pytest.raises(TypeError, match=message):
        initialize(key(0), model)
    values = initialize(key(0), compose(linear(2, 3), Scale(torch.ones(3))))
    assert torch.equal(values[1].weight, torch.ones(3))


def test_a_function_in_place_of_an_initialiser_is_told() -> None:
    with pytest.raises(TypeError, match=r"weight_init must be an initialiser, such as normal\(0.02\), not the function zeros"):
        linear(2, 3, weight_init=zeros)  # type: ignore[arg-type]  # the error under test
    with pytest.raises(
        TypeError, match=r"Linear's weight_init must be an initialiser, such as normal\(0.02\), not the function"
    ):
        attrs.evolve(linear(2, 3), weight_init=zeros)  # type: ignore[arg-type]  # likewise
    with pytest.raises(TypeError, match=r"Loose.weight_init must be an initialiser, such as kaiming_uniform\(\) with its"):
        initialize(key(0), Loose(torch.empty(3, device="meta")))


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(TypeError, match="the model is of type list, not a layer or a tuple of layers: write compose"):
        initialize(key(0), [linear(2, 3)])  # type: ignore[type-var]  # the error under test
    with pytest.raises(TypeError, match=r"layer 2 is the class ReLU, not a layer: write ReLU\(\.\.\.\)"):
        initialize(key(0), (linear(2, 3), ReLU))  # type: ignore[type-var]  # the error under test
    with pytest.raises(ValueError, match="the model is an empty tuple: a model needs at least one layer"):
        initialize(key(0), ())


def test_what_is_no_key_is_told() -> None:
    with pytest.raises(TypeError, match=r"a key is made by key\(seed\), split or fold_in, and is not 0"):
        initialize(0, linear(2, 3))  # type: ignore[arg-type]  # the error under test
    with pytest.raises(ValueError, match="one key is needed, but here are 3"):
        initialize(random.split(key(0), 3), linear(2, 3))


def test_a_dtype_that_holds_no_fractions_is_told() -> None:
    with pytest.raises(TypeError, match=r"parameters are of a floating-point dtype, such as torch.float32, not torch.int64"):
        initialize(key(0), linear(2, 3), dtype=torch.int64)
