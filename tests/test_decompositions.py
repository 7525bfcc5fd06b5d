"""The decompositions of operations that ONNX lacks, each against ATen's own kernel, without ONNX: values, shapes and dtypes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import torch
from torch import Tensor

from fundl import key, random
from fundl.interop.onnx._decompositions import TABLE

if TYPE_CHECKING:
    from torch._ops import OpOverload

aten = torch.ops.aten
DTYPES: Final = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}
"""With the largest difference, relative to the largest number of a result: half precision rounds after each operation."""

Arguments = Sequence[object]
Options = Mapping[str, object]


@attrs.frozen
class Draw:
    """Draws tensors of a dtype, each other numbers."""

    dtype: torch.dtype
    drawn: list[int] = attrs.field(factory=list)

    def __call__(self, *shape: int) -> Tensor:
        """Normal numbers."""
        self.drawn.append(len(self.drawn))
        return random.normal(random.fold_in(key(7), len(self.drawn)), shape, dtype=torch.float64).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """Numbers above a half."""
        return self(*shape).abs() + 0.5


Cases = Callable[[Draw], Iterator[tuple[Arguments, Options]]]
CASES: Final[dict[object, Cases]] = {}


def of(*operations: object) -> Callable[[Cases], Cases]:
    """Says which operations cases are for."""

    def remember(cases: Cases) -> Cases:
        CASES.update(dict.fromkeys(operations, cases))
        return cases

    return remember


def plain(*arguments: object, **options: object) -> tuple[Arguments, Options]:
    return arguments, options


# --- Attention -----------------------------------------------------------------------------------------------------------

ATTENTION: Final = aten._scaled_dot_product_flash_attention_for_cpu.default


def attended(draw: Draw) -> Iterator[tuple[list[Tensor], bool, Options]]:
    for queries, keys in (5, 5), (1, 7), (7, 3):
        q, k, v = draw(2, 4, queries, 6), draw(2, 4, keys, 6), draw(2, 4, keys, 6)
        yield [q, k, v], False, {}
        yield [q, k, v], False, {"scale": 0.3}
        mask = torch.where(draw(2, 1, queries, keys) > 1, -math.inf, 0.5).to(draw.dtype)
        yield [q, k, v], False, {"attn_mask": mask}
        if queries == keys:
            yield [q, k, v], True, {}


@of(ATTENTION)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for tensors, causal, options in attended(draw):
        yield [*tensors, 0.0, causal], options


@of(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for tensors, causal, options in attended(draw):
        output, logarithms = ATTENTION(*tensors, 0.0, causal, **options)
        yield [draw(*output.shape), *tensors, output, logarithms, 0.0, causal], options


# --- Convolution ---------------------------------------------------------------------------------------------------------


@of(aten.convolution_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for x, weight, stride, padding, dilation, transposed, more, groups in (
        ((2, 3, 9), (4, 3, 3), [1], [0], [1], False, [0], 1),
        ((3, 4, 11), (6, 2, 3), [2], [1], [2], False, [0], 2),
        ((2, 4, 7), (4, 3, 3), [3], [1], [1], True, [2], 1),
        ((2, 4, 6), (4, 2, 2), [2], [0], [3], True, [2], 2),
        ((2, 3, 7, 9), (5, 3, 3, 2), [2, 3], [1, 0], [1, 2], False, [0, 0], 1),
        ((1, 6, 5, 8), (6, 1, 1, 3), [1, 2], [0, 1], [1, 1], False, [0, 0], 6),
        ((2, 3, 4, 5), (3, 2, 3, 2), [2, 2], [1, 1], [1, 1], True, [1, 0], 1),
        ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), [1, 2, 2], [0, 1, 1], [1, 1, 2], False, [0, 0, 0], 1),
    ):
        tensors = draw(*x), draw(*weight)
        output = aten.convolution(*tensors, None, stride, padding, dilation, transposed, more, groups)
        sizes = [output.shape[1]]
        for wanted in [True, True, True], [False, True, False], [True, False, True]:
            grad = draw(*output.shape)
            yield plain(grad, *tensors, sizes, stride, padding, dilation, transposed, more, groups, wanted)


@of(aten._weight_norm_interface.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield plain(draw(4, 3, 5), draw.positive(4, 1, 1), 0)
    yield plain(draw(4, 3, 5), draw.positive(1, 1, 5), 2)


@of(aten._weight_norm_interface_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for gain, axis in ((4, 1, 1), 0), ((1, 1, 5), 2):
        tensors = draw(4, 3, 5), draw.positive(*gain)
        _, norm = aten._weight_norm_interface(*tensors, axis)
        yield plain(draw(4, 3, 5), *tensors, norm, axis)


# --- Normalisation -------------------------------------------------------------------------------------------------------

WANTED: Final = ([True, True, True], [True, False, False], [False, True, True])


def layers(draw: Draw) -> Iterator[tuple[object, ...]]:
    """Rows whose mean is far from 0, and large ones."""
    for shape, sizes in ((3, 7), [7]), ((2, 3, 4, 5), [4, 5]), ((5,), [5]), ((1, 1000), [1000]):
        x = draw(*shape) * 3 + 20
        yield x, sizes, draw(*sizes), draw(*sizes), 1e-5
        yield x * 300, sizes, None, None, 1e-5


@of(aten.native_layer_norm.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield from ((arguments, {}) for arguments in layers(draw))


@of(aten.native_layer_norm_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for x, sizes, weight, bias, eps in layers(draw):
        assert isinstance(x, Tensor)
        _, mean, scale = aten.native_layer_norm(x, sizes, weight, bias, eps)
        for wanted in WANTED if weight is not None else [[True, False, False]]:
            yield plain(draw(*x.shape), x, sizes, mean, scale, weight, bias, wanted)


def groups(draw: Draw) -> Iterator[tuple[object, ...]]:
    for shape, count in ((2, 6, 5), 3), ((3, 4, 3, 5), 1), ((1, 4, 2, 2, 3), 4):
        x = draw(*shape) * 3 + 20
        batch, channels, pixels = shape[0], shape[1], math.prod(shape[2:])
        yield x, draw(channels), draw(channels), batch, channels, pixels, count, 1e-5
        yield x * 300, None, None, batch, channels, pixels, count, 1e-5


@of(aten.native_group_norm.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield from ((arguments, {}) for arguments in groups(draw))


@of(aten.native_group_norm_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for x, weight, bias, *sizes, eps in groups(draw):
        assert isinstance(x, Tensor)
        _, mean, scale = aten.native_group_norm(x, weight, bias, *sizes, eps)
        for wanted in WANTED if weight is not None else [[True, False, False]]:
            yield plain(draw(*x.shape), x, mean, scale, weight, *sizes, wanted)


def batches(draw: Draw) -> Iterator[tuple[object, ...]]:
    for shape in (5, 3), (4, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4):
        x = draw(*shape) * 3 + 20
        yield x, draw(3), draw(3), None, None, True, 0.1, 1e-5
        yield x * 300, None, None, None, None, True, 0.1, 1e-5
        yield x, draw(3), draw(3), draw(3), draw.positive(3), False, 0.1, 1e-5


@of(aten.native_batch_norm.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield from ((arguments, {}) for arguments in batches(draw))


@of(aten.native_batch_norm_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    for x, weight, bias, mean, variance, training, momentum, eps in batches(draw):
        assert isinstance(x, Tensor)
        _, *kept = aten.native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
        for wanted in WANTED if weight is not None else [[True, False, False]]:
            yield plain(draw(*x.shape), x, weight, mean, variance, *kept, training, eps, wanted)


# --- Pooling -------------------------------------------------------------------------------------------------------------

IMAGES: Final[Mapping[int, list[tuple[int, ...]]]] = {2: [(2, 3, 7, 9), (1, 2, 5, 4)], 3: [(2, 2, 5, 7, 6), (1, 1, 3, 4, 5)]}
ADAPTED: Final = {2: [[1, 1], [3, 4], [5, 2]], 3: [[1, 1, 1], [2, 3, 4], [3, 1, 5]]}

for axes in (2, 3):

    @of(getattr(aten, f"adaptive_avg_pool{axes}d").default, getattr(aten, f"_adaptive_avg_pool{axes}d").default)
    def _(draw: Draw, axes: int = axes) -> Iterator[tuple[Arguments, Options]]:
        yield from (plain(draw(*shape), sizes) for shape in IMAGES[axes] for sizes in ADAPTED[axes])

    @of(getattr(aten, f"_adaptive_avg_pool{axes}d_backward").default)
    def _(draw: Draw, axes: int = axes) -> Iterator[tuple[Arguments, Options]]:
        yield from (plain(draw(*shape[:2], *sizes), draw(*shape)) for shape in IMAGES[axes] for sizes in ADAPTED[axes])

    @of(getattr(aten, f"adaptive_max_pool{axes}d").default)
    def _(draw: Draw, axes: int = axes) -> Iterator[tuple[Arguments, Options]]:
        for shape in IMAGES[axes]:
            for sizes in ADAPTED[axes]:
                yield plain(x := draw(*shape), sizes)
                x[0, 0].view(-1)[7] = math.nan
                yield plain(x, sizes)

    @of(getattr(aten, f"adaptive_max_pool{axes}d_backward").default)
    def _(draw: Draw, axes: int = axes) -> Iterator[tuple[Arguments, Options]]:
        for shape in IMAGES[axes]:
            for sizes in ADAPTED[axes]:
                x = draw(*shape)
                _, places = getattr(aten, f"adaptive_max_pool{axes}d")(x, sizes)
                yield plain(draw(*shape[:2], *sizes), x, places)

    @of(getattr(aten, f"max_pool{axes}d_with_indices_backward").default)
    def _(draw: Draw, axes: int = axes) -> Iterator[tuple[Arguments, Options]]:
        for shape in IMAGES[axes]:
            for kernel, stride, padding, dilation, ceil in (3, 2, 1, 1, False), (2, 1, 0, 2, False), (2, 2, 1, 1, True):
                x, options = draw(*shape), [[one] * axes for one in (kernel, stride, padding, dilation)]
                y, places = getattr(aten, f"max_pool{axes}d_with_indices")(x, *options, ceil)
                yield plain(draw(*y.shape), x, *options, ceil, places)

    def pooled(draw: Draw, axes: int = axes) -> Iterator[tuple[object, ...]]:
        for shape in IMAGES[axes]:
            for kernel, stride, padding in (3, [2], 1), (2, [], 0), (3, [1], 1), (2, [3], 1):
                for ceil in False, True:
                    for count_padding in False, True:
                        for divisor in None, 5:
                            yield draw(*shape), [kernel] * axes, stride * axes, [padding] * axes, ceil, count_padding, divisor

    @of(getattr(aten, f"avg_pool{axes}d").default)
    def _(draw: Draw, pooled: Callable[[Draw], Iterator[tuple[object, ...]]] = pooled) -> Iterator[tuple[Arguments, Options]]:
        yield from ((arguments, {}) for arguments in pooled(draw))

    @of(getattr(aten, f"avg_pool{axes}d_backward").default)
    def _(
        draw: Draw, axes: int = axes, pooled: Callable[[Draw], Iterator[tuple[object, ...]]] = pooled
    ) -> Iterator[tuple[Arguments, Options]]:
        for arguments in pooled(draw):
            x, *options = arguments
            assert isinstance(x, Tensor)
            yield plain(draw(*getattr(aten, f"avg_pool{axes}d")(x.double(), *options).shape), x, *options)


# --- Resampling and padding ----------------------------------------------------------------------------------------------

Resampled = Callable[[], Iterator[tuple[list[int], list[int], list[object]]]]
RESAMPLED: Final = {1: [([7], [11]), ([9], [4]), ([5], [1]), ([2], [82])], 2: [([4, 7], [8, 5])], 3: [([3, 4, 5], [5, 9, 2])]}

for kind, names in ("nearest", ("nearest1d", "nearest2d", "nearest3d")), ("linear", ("linear1d", "bilinear2d", "trilinear3d")):
    for axes, name in enumerate(names, 1):

        def resampled(axes: int = axes, kind: str = kind) -> Iterator[tuple[list[int], list[int], list[object]]]:
            for image, sizes in RESAMPLED[axes]:
                exact = [size / before for before, size in zip(image, sizes, strict=True)]
                for scales in [None] * axes, exact:
                    for corners in [[]] if kind == "nearest" else [[False], [True]]:
                        yield image, sizes, [*corners, *scales]
            yield [5] * axes, [13] * axes, [*([False] if kind == "linear" else []), *[2.7] * axes]

        @of(getattr(aten, f"upsample_{name}").default)
        def _(draw: Draw, resampled: Resampled = resampled) -> Iterator[tuple[Arguments, Options]]:
            for image, sizes, options in resampled():
                yield plain(draw(2, 3, *image), sizes, *options)

        @of(getattr(aten, f"upsample_{name}_backward").default)
        def _(draw: Draw, resampled: Resampled = resampled) -> Iterator[tuple[Arguments, Options]]:
            for image, sizes, options in resampled():
                yield plain(draw(2, 3, *sizes), sizes, [2, 3, *image], *options)


Paddings = Callable[[], Iterator[tuple[tuple[int, ...], list[int]]]]
PADDED: Final[Mapping[int, list[tuple[int, ...]]]] = {1: [(6,), (4,)], 2: [(4, 6), (5, 4)], 3: [(4, 5, 6)]}
for axes in (1, 2, 3):

    def paddings(axes: int = axes) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        for image in PADDED[axes]:
            yield image, [1, 2] * axes
            yield image, [0, 3, *[2, 0] * (axes - 1)]

    for mode in "reflection", "replication":

        @of(getattr(aten, f"{mode}_pad{axes}d").default)
        def _(draw: Draw, paddings: Paddings = paddings) -> Iterator[tuple[Arguments, Options]]:
            yield from (plain(draw(2, 3, *image), padding) for image, padding in paddings())

        @of(getattr(aten, f"{mode}_pad{axes}d_backward").default)
        def _(
            draw: Draw,
            name: str = f"{mode}_pad{axes}d",
            paddings: Paddings = paddings,
        ) -> Iterator[tuple[Arguments, Options]]:
            for image, padding in paddings():
                x = draw(2, 3, *image)
                yield plain(draw(*getattr(aten, name)(x, padding).shape), x, padding)


@of(aten._pad_circular.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield plain(draw(2, 3, 6), [1, 2])
    yield plain(draw(2, 3, 4, 5), [0, 3, 2, 1])


# --- The rest ------------------------------------------------------------------------------------------------------------


@of(aten.embedding_dense_backward.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    tokens = torch.tensor([[0, 3, 3], [5, 1, 3]])
    for padding, by_frequency in (-1, False), (3, False), (-1, True), (5, True):
        yield plain(draw(2, 3, 4), tokens, 6, padding, by_frequency)
    yield plain(draw(0, 4), tokens.reshape(-1)[:0], 6, -1, False)


@of(aten.gelu.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    x = torch.cat([draw(50) * 3, torch.tensor([0.0, -0.0, 60.0, -60.0, math.inf, math.nan], dtype=draw.dtype)])
    yield from (plain(x, approximate=how) for how in ("none", "tanh"))


@of(aten.lerp.Scalar)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield from (plain(draw(3, 5), draw(3, 5), weight) for weight in (0.0, 0.3, 0.5, 0.9, 1.0, -2.0))


@of(aten.lerp.Tensor)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield plain(draw(3, 5), draw(3, 5), draw(3, 5))
    yield plain(draw(3, 5), draw(3, 5), draw())


@of(aten.view.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield plain(draw(4, 6), [3, -1])


@of(aten.copy.default)
def _(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
    yield plain(draw(4, 6), torch.arange(6))
    yield plain(torch.arange(6), draw(6) * 5)


# --- Lists ---------------------------------------------------------------------------------------------------------------


def argument_of(name: str, kind: str, draw: Draw, first: list[Tensor]) -> object:
    """What a kernel of lists is given for an argument of its schema."""
    above = name in {"self", "tensor2", "exponent"}
    if kind == "List[Tensor]":
        return [draw.positive(*one.shape) if above else draw(*one.shape) for one in first]
    if kind == "List[number]":
        return [0.75 + index / 8 for index in range(len(first))]
    if kind == "Tensor":  # of one number for all, or of one for each
        return torch.tensor([0.75 + index / 8 for index in range(len(first))]) if name == "scalars" else draw.positive()
    return 0.75


def of_lists(overload: "OpOverload[..., object]") -> Cases:  # type: ignore[explicit-any]  # of any arguments
    def cases(draw: Draw) -> Iterator[tuple[Arguments, Options]]:
        first = [draw.positive(3, 5), draw.positive(), draw.positive(1, 1, 4)]
        schema = overload._schema.arguments
        needed = [one for one in schema if not one.has_default_value() or one.name in {"value", "alpha"}]
        given = {one.name: argument_of(one.name, str(one.type), draw, first) for one in needed}
        if "norm" in overload.__name__:
            yield from (plain(first, order) for order in (1, 2, math.inf))
        yield (
            [given[one.name] for one in needed if not one.kwarg_only],
            {one.name: given[one.name] for one in needed if one.kwarg_only},
        )

    return cases


for operation in TABLE:
    if isinstance(operation, torch._ops.OpOverload) and operation.__name__.startswith("_foreach"):
        of(operation)(of_lists(operation))


# --- All of them ---------------------------------------------------------------------------------------------------------


def tensors_in(result: object) -> list[Tensor | None]:
    return [*result] if isinstance(result, tuple | list) else [result]  # type: ignore[list-item]  # of tensors


def has_kernel(operation: Callable[..., object], arguments: Arguments, options: Options) -> bool:  # type: ignore[explicit-any]  # likewise
    """Whether the CPU has a kernel for what is given."""
    try:
        operation(*arguments, **options)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def test_each_decomposition_has_cases() -> None:
    assert {*CASES} == {*TABLE}


NAMES: Final = {f"{operation}": operation for operation in TABLE}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_kernel(name: str, dtype: torch.dtype) -> None:
    operation, bound = NAMES[name], DTYPES[dtype]
    assert callable(operation)
    for arguments, options in CASES[operation](Draw(dtype)):
        if dtype is torch.float16 and not has_kernel(operation, arguments, options):
            continue
        expected = tensors_in(operation(*arguments, **options))
        found = tensors_in(TABLE[operation](*arguments, **options))
        for own, right in zip(found, expected, strict=True):
            if right is None or own is None:
                assert own is None
                continue
            assert (own.shape, own.dtype) == (right.shape, right.dtype)
            largest = max(1.0, float(right.double().nan_to_num(0, 0, 0).abs().max())) if right.numel() else 1.0
            torch.testing.assert_close(own, right, rtol=0, atol=bound * largest, equal_nan=True)
