"""Random numbers: the generator against published vectors, draws against distributions, traced code against eager."""

import importlib
import math
import shutil
from collections.abc import Callable
from typing import Final, Literal, Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fundl._common import draws, representable
from fundl._common import philox as ours
from fundl.random import (
    bernoulli,
    beta,
    bits,
    categorical,
    choice,
    dirichlet,
    exponential,
    fold_in,
    gamma,
    gumbel,
    key,
    normal,
    permutation,
    rademacher,
    randint,
    split,
    truncated_normal,
    uniform,
)

WORD: Final = 0xFFFFFFFF
MILLION: Final = 10**6
LIKELY: Final = 1e-3  # seeds are fixed: a p-value below this is a fault, not bad luck
DTYPES: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

WEIGHTS: Final = torch.tensor([0.2, 0.0, 1.0, 0.7, 0.01, 0.5, 3.0])

DRAWS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "bits": lambda key: bits(key, (3, 7)),
    "uniform": lambda key: uniform(key, (3, 7)),
    "uniform float64": lambda key: uniform(key, (3, 7), dtype=torch.float64),
    "uniform in a range": lambda key: uniform(key, (3, 7), low=-0.3, high=0.7),
    "uniform in a range, float16": lambda key: uniform(key, (3, 7), low=-0.3, high=0.7, dtype=torch.float16),
    "normal": lambda key: normal(key, (3, 7), mean=1.0, std=0.1),
    "truncated_normal": lambda key: truncated_normal(key, (3, 7), low=0.5, high=math.inf),
    "bernoulli": lambda key: bernoulli(key, (3, 7), probability=0.3),
    "randint": lambda key: randint(key, (3, 7), low=-5, high=1000),
    "permutation": lambda key: permutation(key, 21),
    "exponential": lambda key: exponential(key, (3, 7), scale=0.3),
    "gumbel": lambda key: gumbel(key, (3, 7), location=-1.0, scale=2.0),
    "gumbel float64": lambda key: gumbel(key, (3, 7), dtype=torch.float64),
    "rademacher": lambda key: rademacher(key, (3, 7), dtype=torch.bfloat16),
    "categorical": lambda key: categorical(key, WEIGHTS.log(), shape=(3, 7)),
    "choice": lambda key: choice(key, 7, (3, 2)),
    "choice by probabilities": lambda key: choice(key, 7, (3, 2), probabilities=WEIGHTS),
    "choice without replacement": lambda key: choice(key, 7, (3, 2), replace=False),
    "choice by probabilities, without replacement": lambda key: choice(key, 7, (3, 2), replace=False, probabilities=WEIGHTS),
    "gamma": lambda key: gamma(key, (3, 7), concentration=2.0, scale=0.3),
    "gamma of a small concentration": lambda key: gamma(key, (3, 7), concentration=0.2, dtype=torch.float64),
    "gamma of concentrations": lambda key: gamma(key, (3, 7), concentration=WEIGHTS + 0.5, dtype=torch.float16),
    "beta": lambda key: beta(key, (3, 7), alpha=WEIGHTS + 0.01, beta=0.7),
    "dirichlet": lambda key: dirichlet(key, (3, 7), concentration=WEIGHTS + 0.1),
    "fold_in": lambda key: fold_in(key, 2**63 + 1),
    "fold_in a tensor": lambda key: fold_in(key, torch.tensor(3)),
    "split": lambda key: split(key, 5),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- The oracles ----------------------------------------------------------------------------------------------------


class Outcome(Protocol):
    @property
    def pvalue(self) -> float: ...


class KolmogorovSmirnov(Protocol):
    def __call__(self, sample: object, cdf: object) -> Outcome: ...


class ChiSquare(Protocol):
    def __call__(self, counts: object) -> Outcome: ...


scipy_stats: Final = importlib.import_module("scipy.stats")
kolmogorov_smirnov: KolmogorovSmirnov = scipy_stats.kstest  # scipy ships no types
chi_square: ChiSquare = importlib.import_module("scipy.stats").chisquare


def fits(sample: Tensor, distribution: str, *parameters: float) -> bool:
    """Whether the Kolmogorov-Smirnov test lets the sample pass as one of the distribution."""
    cdf: object = getattr(scipy_stats, distribution)(*parameters).cdf
    return kolmogorov_smirnov(sample.double().numpy(), cdf).pvalue > LIKELY


def even(counts: Tensor) -> bool:
    """Whether the chi-square test lets the counts pass as those of equally likely cases."""
    return chi_square(counts.numpy()).pvalue > LIKELY


def agree(result: Tensor, expected: Tensor, draw: Callable[[Tensor], Tensor]) -> bool:
    """Whether two results of a draw are equal: to the bit, but for the last one of sums and of torch's inverse function."""
    if draw in {DRAWS["truncated_normal"], DRAWS["dirichlet"]}:
        return torch.allclose(result, expected, rtol=2.0**-23, atol=0.0)
    return torch.equal(result, expected)


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper states it, on Python's unbounded integers."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second & WORD, (first >> 32) ^ d ^ m, first & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return a, b, c, d


def block(key: Tensor, position: int, purpose: int = 0) -> tuple[int, ...]:
    """A block of the stream, as the documentation lays it out."""
    low, high = key.tolist()
    return philox((position & WORD, purpose, position >> 32, purpose), (low, high))


def words(key: Tensor, count: int) -> list[int]:
    """The first words of the stream."""
    return [word for position in range(-(-count // 4)) for word in block(key, position)][:count]


def wide(key: Tensor, count: int) -> list[int]:
    """The first 64-bit integers of the stream."""
    stream = words(key, 2 * count)
    return [(high << 32) | low for high, low in zip(stream[::2], stream[1::2], strict=True)]


# --- The generator --------------------------------------------------------------------------------------------------

VECTORS: Final = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD, WORD, WORD, WORD), (WORD, WORD), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "words_of_key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], words_of_key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    a, b, c, d = counter
    even_words, odd_words = ours.philox(torch.tensor([[a], [c]]), torch.tensor([[b], [d]]), torch.tensor(words_of_key))
    assert (*even_words[0].tolist(), *odd_words[0].tolist(), *even_words[1].tolist(), *odd_words[1].tolist()) == (
        expected[0],
        expected[1],
        expected[2],
        expected[3],
    )
    assert philox(counter, words_of_key) == expected  # the oracle of the tests below


def test_no_product_overflows() -> None:
    assert all((2**32 - multiplier) * WORD < 2**63 for multiplier in ours.MULTIPLIERS)


@pytest.mark.parametrize("purpose", [0, 1, 2])
def test_blocks_beyond_32_bits_of_position(purpose: int) -> None:
    positions = [0, 1, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**32 + 7, 2**62 + 3, 2**63 - 1]
    some_key = key(0x0123456789ABCDEF)
    even_words, odd_words = ours.blocks(some_key, torch.tensor(positions), purpose)
    blocks = torch.stack((even_words[0], odd_words[0], even_words[1], odd_words[1]), dim=1)
    assert [tuple(row) for row in blocks.tolist()] == [block(some_key, position, purpose) for position in positions]


def test_bits_are_the_words_in_order() -> None:
    assert bits(key(3), (2, 5)).flatten().tolist() == words(key(3), 10)


def test_integers_in_order() -> None:
    stream = wide(key(3), 9)
    assert randint(key(3), (3, 3), low=-7, high=13).flatten().tolist() == [(number >> 1) % 20 - 7 for number in stream]
    order = permutation(key(3), 9).tolist()
    assert order == sorted(range(9), key=lambda place: stream[place])


def test_floats_in_order() -> None:
    double = uniform(key(3), (9,), dtype=torch.float64)
    assert double.tolist() == [(number >> 11) * 2.0**-53 for number in wide(key(3), 9)]
    gaussian = normal(key(3), (2,), mean=5.0, std=2.0, dtype=torch.float64)
    first, second = (number >> 11 for number in wide(key(3), 2))
    radius, angle = math.sqrt(-2 * math.log((first + 1) * 2.0**-53)), 2 * math.pi * second * 2.0**-53
    torch.testing.assert_close(
        gaussian, torch.tensor([5 + 2 * radius * math.cos(angle), 5 + 2 * radius * math.sin(angle)], dtype=torch.float64)
    )


@every_dtype
def test_uniform_is_the_most_significant_bits(dtype: torch.dtype) -> None:
    digits = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    numbers = uniform(key(4), (1000,), dtype=dtype)
    stream = [word << 32 for word in words(key(4), 1000)] if digits < 53 else wide(key(4), 1000)
    assert numbers.dtype == dtype
    assert [number * 2.0**digits for number in numbers.double().tolist()] == [number >> (64 - digits) for number in stream]


def test_golden_values() -> None:
    """If this fails, the stream has changed: every seed in every paper and checkpoint means something else."""
    some_key = key(2**63 + 12345)
    double = (uniform(some_key, (3,), dtype=torch.float64) * 2.0**53).long()
    assert some_key.tolist() == [12345, 2147483648]
    assert bits(some_key, (6,)).tolist() == [839173618, 2921583128, 2798820529, 800659238, 4145900332, 2764609423]
    assert fold_in(some_key, 1).tolist() == [1372679508, 1650640105]
    assert fold_in(some_key, 2**64 - 1).tolist() == [2194895747, 2567644655]
    assert split(some_key).tolist() == [[1777784569, 4192971775], [2457327567, 1394722389]]
    assert (uniform(some_key, (3,)) * 2.0**24).long().tolist() == [3278021, 11412434, 10932892]
    assert double.tolist() == [1759874632762490, 5869552070424354, 8694583174404370]
    assert bernoulli(some_key, (8,), probability=0.5).long().tolist() == [1, 0, 0, 1, 0, 0, 1, 1]
    assert randint(some_key, (4,), low=-100, high=100).tolist() == [-72, -89, -53, 91]
    assert permutation(some_key, 6).tolist() == [0, 4, 3, 5, 1, 2]
    torch.testing.assert_close(
        normal(some_key, (3,)), torch.tensor([-1.0469547510147095, -1.472904920578003, -0.15072891116142273])
    )
    torch.testing.assert_close(
        truncated_normal(some_key, (3,)), torch.tensor([-0.8090423941612244, 0.37118738889694214, 1.5903470516204834])
    )


# --- Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_key_holds_the_seed(seed: int) -> None:
    low, high = key(seed).tolist()
    assert low + (high << 32) == seed
    assert key(seed).dtype == torch.int64


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_key_refuses_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"a seed must be from 0 to 2\*\*64 - 1, not {seed}"):
        key(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1"])
def test_key_refuses_what_is_no_int(seed: int) -> None:
    with pytest.raises(TypeError, match=f"a seed must be an int, not {seed!r}"):
        key(seed)


def test_fold_in_and_split_are_blocks_of_their_own() -> None:
    for number in (0, 1, 2**32, 2**63 + 5, 2**64 - 1):
        assert tuple(fold_in(key(8), number).tolist()) == block(key(8), number, purpose=1)[:2]
    assert [tuple(new) for new in split(key(8), 3).tolist()] == [block(key(8), place, purpose=2)[:2] for place in range(3)]


def test_split_is_a_prefix_of_longer_splits() -> None:
    first, second = split(key(8))
    assert torch.equal(split(key(8), 9)[:2], torch.stack((first, second)))
    assert split(key(8), 0).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_fold_in_takes_counters(dtype: torch.dtype) -> None:
    expected = fold_in(key(8), 3)
    assert torch.equal(fold_in(key(8), torch.tensor(3, dtype=dtype)), expected)
    assert torch.equal(fold_in(key(8), torch.tensor([3], dtype=dtype)), expected)


def test_fold_in_takes_negative_counters_as_64_bits() -> None:
    assert torch.equal(fold_in(key(8), torch.tensor(-1)), fold_in(key(8), 2**64 - 1))


def test_fold_in_refuses_what_is_no_integer() -> None:
    with pytest.raises(TypeError, match=r"must be an integer, not torch\.float32"):
        fold_in(key(0), torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"must be an integer, not torch\.bool"):
        fold_in(key(0), torch.tensor(True))
    with pytest.raises(TypeError, match="the number to fold in must be an int, not False"):
        fold_in(key(0), False)
    with pytest.raises(ValueError, match=r"the number to fold in must be from 0 .* not -1"):
        fold_in(key(0), -1)
    with pytest.raises(ValueError, match=r"one number can be folded in, not a tensor of shape \(2,\)"):
        fold_in(key(0), torch.tensor([1, 2]))


def test_split_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="0 or more keys, not -1"):
        split(key(0), -1)


@every_draw
def test_draws_refuse_what_is_no_key(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="one key is needed, but here are 3, as from split: iterate"):
        draw(split(key(0), 3))
    with pytest.raises(ValueError, match=r"a key has shape \(2,\).*not \(1,\)"):
        draw(torch.tensor([1]))
    with pytest.raises(TypeError, match=r"int64 tensor made by key\(seed\).*not a tensor of torch\.int32"):
        draw(key(0).int())


@every_draw
def test_draws_refuse_keys_that_are_no_tensors(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TypeError, match=r"a key is made by key\(seed\), split or fold_in, and is not \(7,\)"):
        draw((7,))  # type: ignore[arg-type]  # as from a notebook, where nobody checks types


# --- Shapes, devices, modes -----------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def test_every_shape_is_filled_in_the_same_order() -> None:
    stream, double = bits(key(1), (5**4,)), uniform(key(1), (5**4,), dtype=torch.float64)

    def check(shape: tuple[int, ...]) -> None:
        count = math.prod(shape)
        assert bits(key(1), shape).shape == shape
        assert torch.equal(bits(key(1), shape).flatten(), stream[:count])
        assert torch.equal(uniform(key(1), shape, dtype=torch.float64), double[:count].reshape(shape))
        assert normal(key(1), shape).shape == truncated_normal(key(1), shape).shape == shape
        assert bernoulli(key(1), shape, probability=0.5).shape == randint(key(1), shape, low=0, high=2).shape == shape

    settings(deadline=None, derandomize=True, max_examples=50)(given(shapes)(check))()


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"sizes of 0 or more, not \(2, -1\)"):
        bits(key(0), (2, -1))
    with pytest.raises(TypeError, match=r"a shape is a tuple of ints, such as \(2, 3\), not 3"):
        uniform(key(0), 3)  # type: ignore[arg-type]  # as from a notebook, where nobody checks types


@every_draw
def test_a_key_on_the_meta_device_gives_shapes(draw: Callable[[Tensor], Tensor]) -> None:
    expected, result = draw(key(0)), draw(key(0, device="meta"))
    assert result.is_meta
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@every_draw
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_bits_are_the_same_on_a_cuda_device(draw: Callable[[Tensor], Tensor]) -> None:
    expected, result = draw(key(5)), draw(key(5, device="cuda"))
    assert result.is_cuda
    assert agree(result.cpu(), expected, draw)


@every_draw
def test_draws_need_no_mode_and_record_no_tape(draw: Callable[[Tensor], Tensor]) -> None:
    expected = draw(key(5))
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(draw(key(5)), expected)
    with torch.inference_mode():
        assert torch.equal(draw(key(5)), expected)


@every_draw
def test_draws_leave_the_key_and_the_global_generator_alone(draw: Callable[[Tensor], Tensor]) -> None:
    some_key, state = key(5), torch.random.get_rng_state()
    assert torch.equal(draw(some_key), draw(some_key))
    assert torch.equal(some_key, key(5))
    assert torch.equal(torch.random.get_rng_state(), state)


@every_draw
@pytest.mark.parametrize("mode", ["real", "fake"])
def test_traced_draws_are_equal_to_the_bit(draw: Callable[[Tensor], Tensor], mode: Literal["real", "fake"]) -> None:
    traced = make_fx(draw, tracing_mode=mode, _allow_non_fake_inputs=True)(key(5))  # such as probabilities
    for seed in (5, 6):  # a key that was not there at tracing, too
        assert torch.equal(traced(key(seed)), draw(key(seed)))


def test_a_traced_step_takes_its_counter() -> None:
    def step(key: Tensor, count: Tensor) -> Tensor:
        return uniform(fold_in(key, count), (4,))

    traced = make_fx(step, tracing_mode="fake")(key(5), torch.tensor(0))
    for count in (0, 1, 2**40):
        assert torch.equal(traced(key(5), torch.tensor(count)), uniform(fold_in(key(5), count), (4,)))


@every_draw
def test_fake_tensors_pass_through(draw: Callable[[Tensor], Tensor]) -> None:
    expected = draw(key(5))
    with FakeTensorMode(allow_non_fake_inputs=True):  # such as probabilities
        result = draw(key(5))
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler (g++), which torch.compile needs")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch's own import of inductor
@every_draw
def test_compiled_draws_are_equal_to_the_bit(draw: Callable[[Tensor], Tensor]) -> None:
    compiled = torch.compile(draw, fullgraph=True)
    for seed in (5, 6):
        assert agree(compiled(key(seed)), draw(key(seed)), draw)


# --- Distributions --------------------------------------------------------------------------------------------------


def test_bytes_are_equally_likely() -> None:
    stream = bits(key(10), (MILLION,))
    for shift in (0, 8, 16, 24):
        assert even(((stream >> shift) & 0xFF).bincount(minlength=256))


def test_neighbouring_words_are_independent() -> None:
    stream = bits(key(11), (MILLION,)) >> 28
    for lag in range(1, 5):
        assert even((stream[:-lag] * 16 + stream[lag:]).bincount(minlength=256))


@every_dtype
def test_uniform_moments(dtype: torch.dtype) -> None:
    numbers = uniform(key(12), (MILLION,), dtype=dtype).double()
    step = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0)  # the numbers k step, not k step + step / 2
    assert abs(numbers.mean() - (1 - step) / 2) < 4 * math.sqrt(1 / 12 / MILLION)
    assert abs(numbers.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / MILLION) + step**2
    assert numbers.min() >= 0
    assert numbers.max() < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_uniform_fits_its_distribution(dtype: torch.dtype) -> None:
    assert fits(uniform(key(13), (MILLION,), dtype=dtype), "uniform")
    assert fits(uniform(key(14), (MILLION,), low=-3.0, high=5.0, dtype=dtype), "uniform", -3.0, 8.0)


@every_dtype
def test_normal_moments(dtype: torch.dtype) -> None:
    numbers = normal(key(15), (MILLION,), mean=0.5, std=0.25, dtype=dtype)
    standard = (numbers.double() - 0.5) / 0.25
    assert numbers.dtype == dtype
    for power, (moment, variance) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96)), start=1):
        assert abs(standard.pow(power).mean() - moment) < 4 * math.sqrt(variance / MILLION)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_normal_fits_its_distribution(dtype: torch.dtype) -> None:
    assert fits(normal(key(16), (MILLION,), dtype=dtype), "norm")
    assert fits(normal(key(17), (MILLION,), mean=-7.0, std=0.1, dtype=dtype), "norm", -7.0, 0.1)


def test_the_two_normal_numbers_of_a_block_are_independent() -> None:
    cosines, sines = normal(key(18), (MILLION // 2, 2), dtype=torch.float64).unbind(1)
    bound = 4 / math.sqrt(MILLION // 2)
    assert abs((cosines * sines).mean()) < bound
    assert abs(((cosines**2 - 1) * (sines**2 - 1)).mean()) < 2 * bound
    assert fits((cosines + sines) / math.sqrt(2), "norm")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_truncated_normal_fits_its_distribution(dtype: torch.dtype) -> None:
    assert fits(truncated_normal(key(19), (MILLION,), dtype=dtype), "truncnorm", -2.0, 2.0)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.25), (0.5, math.inf), (-math.inf, -5.0), (6.0, 7.0), (-math.inf, math.inf)])
def test_truncated_normal_between_other_bounds(low: float, high: float) -> None:
    standard = truncated_normal(key(19), (MILLION // 10,), low=low, high=high)
    assert fits(standard, "truncnorm", low, high)
    assert low <= standard.min() <= standard.max() <= high
    scaled = truncated_normal(key(19), (MILLION // 10,), mean=3.0, std=0.5, low=low, high=high)
    torch.testing.assert_close(scaled, 3.0 + 0.5 * standard)


def test_truncated_normal_moments() -> None:
    numbers = truncated_normal(key(20), (MILLION,), std=0.02).double() / 0.02
    assert abs(numbers.mean()) < 4 * math.sqrt(0.774 / MILLION)
    assert abs(numbers.var() - 0.7737413) < 4e-3
    assert numbers.abs().max() <= 2 + 1e-6


def test_bernoulli_means_and_certainties() -> None:
    for probability in (0.1, 0.5, 0.999):
        share = bernoulli(key(21), (MILLION,), probability=probability).double().mean()
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / MILLION)
    assert not bernoulli(key(21), (MILLION,), probability=0.0).any()
    assert bernoulli(key(21), (MILLION,), probability=1.0).all()
    assert bernoulli(key(21), (2,), probability=1).dtype == torch.bool


def test_bernoulli_compares_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "functions", dict)
    monkeypatch.setattr(ours, "integers", lambda _key, _positions, _bits: torch.tensor([0, 1, WORD - 1, WORD]))
    assert bernoulli(key(0), (4,), probability=2.0**-32).tolist() == [True, False, False, False]
    assert bernoulli(key(0), (4,), probability=1 - 2.0**-32).tolist() == [True, True, True, False]
    assert bernoulli(key(0), (4,), probability=1.0).tolist() == [True] * 4
    assert bernoulli(key(0), (4,), probability=0.0).tolist() == [False] * 4


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan, math.inf])
def test_bernoulli_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=f"a probability is a number from 0 to 1, not {probability}"):
        bernoulli(key(0), (1,), probability=probability)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 2), (-50, 50), (-7, -3), (0, 1000), (-(2**63), -(2**63) + 3), (2**63 - 3, 2**63)]
)
def test_randint_is_even_over_its_range(low: int, high: int) -> None:
    numbers = randint(key(22), (MILLION,), low=low, high=high)
    assert numbers.dtype == torch.int64
    assert low <= numbers.min().item() <= numbers.max().item() < high
    assert even((numbers - low).bincount(minlength=high - low))


def test_randint_of_wide_and_narrow_ranges() -> None:
    assert fits(randint(key(23), (MILLION,), low=-(2**39), high=2**39), "uniform", -(2.0**39), 2.0**40)
    assert randint(key(23), (5,), low=7, high=8).tolist() == [7] * 5


def test_randint_refuses_wrong_ranges() -> None:
    with pytest.raises(ValueError, match=r"no integer is in \[low, high\) = \[3, 3\)"):
        randint(key(0), (1,), low=3, high=3)
    with pytest.raises(ValueError, match=r"\[0, 1099511627777\) is wider than 2\*\*40"):
        randint(key(0), (1,), low=0, high=2**40 + 1)
    with pytest.raises(ValueError, match="do not fit into int64"):
        randint(key(0), (1,), low=2**63, high=2**63 + 1)
    with pytest.raises(TypeError, match="bounds of random integers are ints, not low=0 and high=True"):
        randint(key(0), (1,), low=0, high=True)


def test_permutations_hold_every_integer_once() -> None:
    for count in (0, 1, 2, 3, 1000, MILLION):
        assert torch.equal(permutation(key(24), count).sort().values, torch.arange(count))
    with pytest.raises(ValueError, match="0 or more integers, not -1"):
        permutation(key(24), -1)


def test_all_permutations_are_equally_likely() -> None:
    orders = torch.stack([permutation(some_key, 5) for some_key in split(key(25), 6000)])
    counts = (orders * 5 ** torch.arange(5)).sum(1).bincount()
    counts = counts[counts > 0]
    assert counts.numel() == 120
    assert even(counts)


def test_elements_of_permutations_go_everywhere() -> None:
    order = permutation(key(26), MILLION)
    blocks = order // (MILLION // 10) * 10 + torch.arange(MILLION) // (MILLION // 10)
    assert even(blocks.bincount(minlength=100))


# --- Independence of keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        lambda: [fold_in(key(30), number) for number in range(1000)],
        lambda: [*split(key(30), 1000)],
        lambda: [key(seed) for seed in range(1000)],
    ],
    ids=["fold_in", "split", "seeds"],
)
def test_keys_are_independent(keys: Callable[[], list[Tensor]]) -> None:
    """1000 keys, 1000 numbers of each: the correlations of all 499 500 pairs, and the whole million as one sample."""
    numbers = torch.stack([uniform(some_key, (1000,), dtype=torch.float64) for some_key in keys()])
    assert fits(numbers.flatten(), "uniform")
    assert fits(numbers.mean(1), "norm", 0.5, math.sqrt(1 / 12000))
    pairs = torch.ones(1000, 1000, dtype=torch.bool).triu(1)
    correlations = numbers.corrcoef()[pairs] * math.sqrt(1000)
    assert correlations.abs().max() < 6
    assert abs(correlations.mean()) < 4 / math.sqrt(499_500)
    assert abs(correlations.square().mean() - 1000 / 999) < 4 * math.sqrt(2 / 499_500)


def test_parents_and_children_are_independent() -> None:
    parent = key(31)
    keys = [parent, *split(parent, 3), *(fold_in(parent, number) for number in range(3)), fold_in(fold_in(parent, 0), 0)]
    assert len({tuple(some_key.tolist()) for some_key in keys}) == len(keys)
    numbers = torch.stack([uniform(some_key, (MILLION // 8,), dtype=torch.float64) for some_key in keys])
    off_diagonal = numbers.corrcoef() - torch.eye(len(keys), dtype=torch.float64)
    assert off_diagonal.abs().max() < 4 / math.sqrt(MILLION // 8)


# --- Floating point -------------------------------------------------------------------------------------------------

RANGES: Final = (
    (0.0, 1.0),
    (1.0, 2.0),
    (-1.0, 0.0),
    (-0.3, 0.7),
    (0.1, 0.2),
    (1000.0, 1100.0),
    (-2.0, -1.0),
    (0.0, 1e-5),
    (0.0, 3e4),
)


def largest_below(high: float, dtype: torch.dtype) -> float:
    """The dtype's number before its rounding of high, found by trying ever smaller steps."""
    bound = torch.tensor(high, dtype=dtype)
    candidates = [(bound.double() - sign * 2.0**power).to(dtype) for power in range(-160, 20) for sign in (1, 1.5)]
    return max(candidate.item() for candidate in candidates if candidate < bound)


@every_dtype
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_uniform_never_gives_its_upper_bound(
    monkeypatch: pytest.MonkeyPatch, low: float, high: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(draws, "functions", dict)
    monkeypatch.setattr(ours, "integers", lambda _key, _positions, bits: torch.tensor([0, 2**bits - 1]))
    least, greatest = uniform(key(0), (2,), low=low, high=high, dtype=dtype)
    assert least == torch.tensor(low, dtype=dtype)
    assert greatest < torch.tensor(high, dtype=dtype)
    assert greatest.item() < high
    assert greatest.item() > (low + high) / 2


@every_dtype
@pytest.mark.parametrize("high", [1.0, 2.0, 0.7, 1001.0, 0.0, -1.0, -0.3, 1e-5, 6e-8, 3e4])
def test_the_greatest_number_below(high: float, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        assert representable.greatest_below(-5.0, high, dtype) == math.nextafter(high, -math.inf)
    else:
        assert representable.greatest_below(-5.0, high, dtype) == largest_below(high, dtype)


def test_uniform_stays_between_close_bounds() -> None:
    high = 1 + 3 * 2.0**-23
    counts = uniform(key(40), (MILLION,), low=1.0, high=high).double().sub(1).mul(2.0**23).long().bincount()
    assert counts.numel() == 3  # 1, 1 + 2**-23 and 1 + 2 * 2**-23
    assert counts.min() > MILLION / 7


def test_uniform_rounds_as_fused_arithmetic_would() -> None:
    """The product before the addition is exact, so no compiler's choice of instructions shows in float32."""
    integers = bits(key(41), (1000,)) >> 8
    span = representable.rounded(0.7 + 0.3, 29)
    exact = [int(integer) * int(span * 2.0**40) for integer in integers]
    products = integers.double() * (span * 2.0**-24)
    assert [int(product * 2**64) for product in products.tolist()] == exact


def test_uniform_refuses_wrong_ranges() -> None:
    with pytest.raises(ValueError, match=r"no torch\.float32 number is in \[low, high\) = \[1.0, 1.0\): low must be less"):
        uniform(key(0), (1,), low=1.0, high=1.0)
    with pytest.raises(ValueError, match=r"no torch\.float32 number is in \[low, high\) = \[1.0, 1.00000001\)"):
        uniform(key(0), (1,), low=1.0, high=1.00000001)
    with pytest.raises(ValueError, match=r"\[0.0, 70000.0\) is not a range of finite torch\.float16 numbers"):
        uniform(key(0), (1,), high=70000.0, dtype=torch.float16)
    for low, high in ((0.0, math.nan), (math.nan, 1.0), (-math.inf, 0.0), (-1.7e308, 1.7e308)):
        with pytest.raises(ValueError, match=r"is not a range of finite torch\.float64 numbers"):
            uniform(key(0), (1,), low=low, high=high, dtype=torch.float64)


@every_dtype
def test_normal_numbers_are_finite_at_the_extremes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    extremes = torch.tensor([[0, 0, 2**53 - 1, 2**53 - 1], [0, 2**53 - 1, 0, 2**53 - 1]])
    monkeypatch.setattr(draws, "functions", dict)
    monkeypatch.setattr(ours, "wide", lambda _key, _positions, _bits: extremes)
    numbers = normal(key(0), (8,), dtype=dtype)
    assert numbers.isfinite().all()
    assert 8.5 < numbers.abs().max() < 8.6


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (-math.inf, math.inf), (30.0, math.inf), (-37.0, -36.9)])
def test_truncated_normal_numbers_are_finite_at_the_extremes(monkeypatch: pytest.MonkeyPatch, low: float, high: float) -> None:
    monkeypatch.setattr(draws, "integers", lambda _key, _shape, digits: torch.tensor([0, 2**digits - 1]))
    numbers = truncated_normal(key(0), (2,), low=low, high=high, dtype=torch.float64)
    assert numbers.isfinite().all()
    assert low <= numbers.min() <= numbers.max() <= high


def test_normal_refuses_wrong_scales() -> None:
    for std in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"a standard deviation is a number of 0 or more, not {std}"):
            normal(key(0), (1,), std=std)
    for mean, std in ((math.nan, 1.0), (math.inf, 1.0), (0.0, 1e4)):
        with pytest.raises(ValueError, match=rf"mean={mean} and std={std} are not all finite in torch\.float16"):
            normal(key(0), (1,), mean=mean, std=std, dtype=torch.float16)
    assert normal(key(0), (3,), mean=2.0, std=0.0).tolist() == [2.0] * 3


def test_truncated_normal_refuses_wrong_bounds() -> None:
    for low, high in ((1.0, 1.0), (2.0, -2.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=rf"must be low < high, not low={low}, high={high}"):
            truncated_normal(key(0), (1,), low=low, high=high)
    with pytest.raises(ValueError, match=r"less than 1e-300 of the normal distribution is between low=40.0 and high=41.0"):
        truncated_normal(key(0), (1,), low=40.0, high=41.0)
    with pytest.raises(ValueError, match="not all finite"):
        truncated_normal(key(0), (1,), std=math.inf)


def test_floats_come_in_four_dtypes() -> None:
    for draw in (uniform, normal, truncated_normal):
        with pytest.raises(TypeError, match=r"float64, float32, float16 and bfloat16, not in torch\.int64"):
            draw(key(0), (1,), dtype=torch.int64)
