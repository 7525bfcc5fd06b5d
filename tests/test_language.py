"""Models of sequences, run a few positions at a time: equal to the whole; caches are values; what cannot be stepped is told."""

from collections.abc import Callable
from typing import Final, Self

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    Identity,
    Layer,
    Masked,
    Model,
    Rotary,
    SinusoidalPositions,
    apply,
    assert_trees_close,
    both,
    checkpoint,
    compose,
    cross_attention,
    decoder,
    decoder_block,
    embedding,
    encoder,
    frozen,
    gated_feed_forward,
    gru,
    initialize,
    jit,
    key,
    language,
    layer_norm,
    learned_positions,
    linear,
    load,
    lstm,
    mixed_precision,
    normal,
    parallel,
    pipe,
    rekey,
    repeat,
    residual,
    rms_norm,
    save,
    self_attention,
    tied,
    transformer_block,
    tree,
    weight_norm,
    with_mask,
)
from tests.samples import SAMPLES, Sample

VOCABULARY: Final = 17
TOKENS: Final = torch.randint(0, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


def gpt(*, dtype: torch.dtype = torch.float32) -> Model:
    block = transformer_block(16, 4, causal=True, dtype=dtype)
    layers = learned_positions(20, 16, dtype=dtype), *encoder(2, block, layer_norm(16, dtype=dtype))
    return compose(tied(embedding(VOCABULARY, 16, weight_init=normal(0.5), dtype=dtype), *layers))


def llama() -> Model:
    norm, network = rms_norm(16), gated_feed_forward(16, 24)
    block = transformer_block(
        16, 4, norm=norm, feed_forward=network, key_value_heads=2, causal=True, rotary=10_000.0, bias=False
    )
    return compose(embedding(VOCABULARY, 16), repeat(3, *block), norm, linear(16, VOCABULARY, bias=False))


def other() -> Model:
    attention = self_attention(16, 4, causal=True, window=4, alibi=True, relative=3, soft_cap=3.0, scale=0.3)
    second = parallel(linear(16, 8), (weight_norm(linear(16, 16)), linear(16, 8)), join="concatenate")
    return compose(
        embedding(VOCABULARY, 16),
        SinusoidalPositions(),
        residual(rms_norm(16), attention),
        checkpoint(frozen(self_attention(16, 2, causal=True, rotary=100.0, stretch=(4.0, 0.5, 2.0, 16.0)))),
        parallel(second, Identity()),
        pipe(linear(16, VOCABULARY)),
    )


MODELS: Final[dict[str, Callable[[], Model]]] = {
    "learned positions, tied": gpt,
    "rotary, grouped heads, repeated": llama,
    "a window, ALiBi, biases of distances, a cap, layers of layers": other,
    "recurrent": lambda: compose(embedding(VOCABULARY, 8), lstm(8, 16, depth=2), gru(16, 8), linear(8, VOCABULARY)),
    "one head for keys": lambda: compose(embedding(VOCABULARY, 8), self_attention(8, 4, key_value_heads=1, causal=True)),
}

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def drawn(make: Callable[[], Model], dtype: torch.dtype = torch.float64) -> Model:
    return tree.cast_to(initialize(key(0), make()), dtype)


def in_parts(model: Model, x: Tensor, first: int, *sizes: int) -> Tensor:
    """The output of a model that is run at so many positions, then at so many more, and so on."""
    y, cache = (
        language.prefill(model, x[:, :first], x.shape[1]) if first else (None, language.empty_cache(model, len(x), x.shape[1]))
    )
    parts = [] if y is None else [y]
    for size in sizes:
        start = sum(part.shape[1] for part in parts)
        y, cache = language.step(model, x[:, start : start + size], cache)
        parts.append(y)
    return torch.cat(parts, 1)


# --- Equal to the whole ------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("sizes", [(5, 1, 1, 3, 2), (0, *[1] * 12), (12,), (0, 12), (1, 11)], ids=str)
def test_parts_are_the_whole(make: Callable[[], Model], sizes: tuple[int, ...]) -> None:
    model = drawn(make)
    assert_trees_close(in_parts(model, TOKENS, *sizes), apply(model, TOKENS), rtol=1e-9, atol=1e-9)


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_in_every_dtype(make: Callable[[], Model], dtype: torch.dtype) -> None:
    whole, model = apply(drawn(make), TOKENS), drawn(make, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    parts = in_parts(model, TOKENS, 4, *[1] * 8)
    assert parts.dtype == dtype
    assert_trees_close(parts.double(), whole, rtol=tolerance, atol=tolerance * float(whole.abs().max()))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_sample_layer_is_stepped_right_or_refused(sample: Sample) -> None:
    x, model = sample.x, sample.model
    if not isinstance(x, Tensor) or x.ndim < 2 or isinstance(model, tuple):
        return
    x = x.unsqueeze(0) if x.ndim == 2 and x.is_floating_point() else x
    if x.ndim > 3 and isinstance(model, Rotary | SinusoidalPositions):  # (..., T, F), the steps behind
        return
    try:
        cache = language.empty_cache(model, len(x), x.shape[1])
        whole = apply(model, x)
    except (TypeError, ValueError):
        return
    parts = []
    for position in range(x.shape[1]):
        y, cache = language.step(model, x[:, position : position + 1], cache)
        parts.append(y)
    assert_trees_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


def test_layers_of_all_kinds_are_stepped() -> None:
    stepped = set()
    for sample in SAMPLES:
        try:
            language.empty_cache(sample.model, 2, 3)
        except (TypeError, ValueError):
            continue
        stepped.add(type(sample.model).__name__)
    layers = (
        "Linear Embedding LearnedPositions SinusoidalPositions SelfAttention LayerNorm RMSNorm ReLU GELU GLU Dropout Softmax"
    )
    made_of_layers = "Residual Repeat Tied Frozen MixedPrecision Parallel WeightNorm LowRank LSTM GRU RNN tuple"
    assert stepped >= {*layers.split(), *made_of_layers.split()}


def test_one_token_of_each_sequence() -> None:
    model = drawn(llama)
    _, cache = language.prefill(model, TOKENS[:, :5], 12)
    logits, after = language.step(model, TOKENS[:, 5], cache)
    assert logits.shape == (3, VOCABULARY)
    assert after.position.tolist() == [6, 6, 6]
    assert_trees_close(logits, apply(model, TOKENS)[:, 5], rtol=1e-9, atol=1e-9)


@every_model
def test_prompts_of_different_lengths_go_on_from_their_own(make: Callable[[], Model]) -> None:
    model, lengths = drawn(make), torch.tensor([5, 2, 4])
    mask = torch.arange(5) < lengths.unsqueeze(1)
    if make is MODELS["recurrent"]:
        with pytest.raises(ValueError, match="the state of LSTM behind padding would be that of the padding"):
            language.prefill(model, Masked(TOKENS[:, :5], mask), 12)
        return
    _, cache = language.prefill(model, Masked(torch.where(mask, TOKENS[:, :5], 0), mask), 12)
    following = torch.stack([TOKENS[row, length : length + 3] for row, length in enumerate(lengths.tolist())])
    y, _ = language.step(model, following, cache)
    whole = apply(model, TOKENS)
    expected = torch.stack([whole[row, length : length + 3] for row, length in enumerate(lengths.tolist())])
    assert_trees_close(y, expected, rtol=1e-9, atol=1e-9)


def test_mixed_precision_is_stepped_in_its_dtype() -> None:
    model = initialize(key(0), compose(mixed_precision(embedding(VOCABULARY, 16), *transformer_block(16, 2, causal=True))))
    y, cache = language.prefill(model, TOKENS[:, :5], 12)
    assert {leaf.dtype for leaf in tree.leaves(cache.layers)} == {torch.bfloat16}
    assert y.dtype == torch.float32
    y, _ = language.step(model, TOKENS[:, 5:], cache)
    assert_trees_close(y, apply(model, TOKENS)[:, 5:], rtol=5e-2, atol=5e-2)


# --- A cache is a value ------------------------------------------------------------------------------------------------


@every_model
def test_an_old_cache_can_be_stepped_again(make: Callable[[], Model]) -> None:
    model = drawn(make)
    _, cache = language.prefill(model, TOKENS[:, :5], 12)
    before = tree.map(torch.clone, cache)
    first, _ = language.step(model, TOKENS[:, 5:7], cache)
    language.step(model, TOKENS[:, 7:9], cache)
    again, _ = language.step(model, TOKENS[:, 5:7], cache)
    assert torch.equal(first, again)
    assert tree.equal(cache, before)


@pytest.mark.parametrize("make", [gpt, llama])
def test_a_compiled_step_that_donates_its_cache(make: Callable[[], Model]) -> None:
    model = drawn(make)
    _, cache = language.prefill(model, TOKENS[:, :5], 12)
    step = jit(language.step, donate="cache")
    parts = []
    for position in range(5, 12):
        y, cache = step(model, TOKENS[:, position], cache)
        parts.append(y)
    assert len(step.traces) == 1
    assert_trees_close(torch.stack(parts, 1), apply(model, TOKENS)[:, 5:], rtol=1e-9, atol=1e-9)


def test_a_cache_is_kept_in_a_file(tmp_path: pytest.TempPathFactory) -> None:
    model = drawn(gpt)
    _, cache = language.prefill(model, TOKENS[:, :5], 12)
    save(f"{tmp_path}/cache", cache)
    found = load(f"{tmp_path}/cache", language.empty_cache(model, 3, 12))
    assert torch.equal(language.step(model, TOKENS[:, 5], found)[0], language.step(model, TOKENS[:, 5], cache)[0])


# --- A memory ----------------------------------------------------------------------------------------------------------


SOURCE: Final = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))


def translator() -> Model:
    source = embedding(VOCABULARY, 12, weight_init=normal(0.5)), *encoder(2, transformer_block(12, 2), layer_norm(12))
    block = decoder_block(16, 4, memory_features=12, key_value_heads=2, rotary=100.0)
    text = embedding(VOCABULARY, 16, weight_init=normal(0.5))
    return pipe(both(text, source), decoder(2, block, layer_norm(16)), linear(16, VOCABULARY))


def test_a_decoder_keeps_the_keys_of_its_memory() -> None:
    model = drawn(translator)
    assert isinstance(model, Layer)
    whole = apply(model, (TOKENS, SOURCE))
    y, cache = language.prefill(model, (TOKENS[:, :5], SOURCE), 12)
    parts, before = [y], tree.map(torch.clone, cache)
    first = language.step(model, TOKENS[:, 5], cache)[0]
    for position in range(5, 12):
        y, cache = language.step(model, TOKENS[:, position : position + 1], cache)
        parts.append(y)
    assert_trees_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)
    assert torch.equal(language.step(model, TOKENS[:, 5], before)[0], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_alone_takes_a_memory_that_is_there(dtype: torch.dtype) -> None:
    model = tree.cast_to(initialize(key(0), decoder(2, decoder_block(16, 4), layer_norm(16))), dtype)
    x, memory = (torch.randn(3, size, 16, generator=torch.Generator().manual_seed(size)).to(dtype) for size in (6, 5))
    y, cache = language.prefill(model, (x[:, :2], memory), 6)
    rest, _ = language.step(model, x[:, 2:], cache)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert_trees_close(torch.cat((y, rest), 1), apply(model, (x, memory)), rtol=tolerance, atol=tolerance)


def test_padding_of_a_memory() -> None:
    attention = initialize(key(0), cross_attention(8, 2), dtype=torch.float64)
    model = attrs.evolve(attention, memory_mask=torch.arange(5) < torch.tensor([[5], [2], [4]]))
    x, memory = (torch.randn(3, size, 8, dtype=torch.float64) for size in (6, 5))
    y, cache = language.prefill(model, (x[:, :2], memory), 6)
    rest, _ = language.step(model, x[:, 2:], cache)
    assert_trees_close(torch.cat((y, rest), 1), apply(model, (x, memory)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_encoder_and_a_decoder_write(compiled: bool) -> None:
    model = drawn(translator)
    assert isinstance(model, Layer)
    written = language.generate(key(1), model, (TOKENS[:, :2], SOURCE), 6, temperature=0, compile=compiled)
    text = TOKENS[:, :2]
    for _ in range(6):
        text = torch.cat((text, apply(model, (text, SOURCE))[:, -1:].argmax(-1)), 1)
    assert torch.equal(written, text[:, 2:])
    alone = language.generate(key(1), model, (TOKENS[0, :2], SOURCE[0]), 6, temperature=0, compile=False)
    assert torch.equal(alone, written[0])


def test_a_prompt_of_different_lengths_with_a_memory() -> None:
    model, lengths = drawn(translator), torch.tensor([5, 2, 4])
    assert isinstance(model, Layer)
    mask = torch.arange(5) < lengths.unsqueeze(1)
    _, cache = language.prefill(model, (Masked(torch.where(mask, TOKENS[:, :5], 0), mask), SOURCE), 12)
    y, _ = language.step(model, torch.stack([TOKENS[row, length] for row, length in enumerate(lengths.tolist())]), cache)
    whole = apply(model, (TOKENS, SOURCE))
    assert_trees_close(
        y, torch.stack([whole[row, length] for row, length in enumerate(lengths.tolist())]), rtol=1e-9, atol=1e-9
    )


def test_a_memory_that_is_missing_is_told() -> None:
    model = drawn(translator)
    assert isinstance(model, Layer)
    with pytest.raises(TypeError, match=r"both looks at a memory, .*begin with language.prefill\(model, \(x, memory\)"):
        language.prefill(model, TOKENS, 12)
    with pytest.raises(TypeError, match="both looks at a memory"):
        language.step(model, TOKENS, language.empty_cache(model, 3, 12))
    with pytest.raises(ValueError, match="as many sequences in x as in the memory"):
        language.prefill(model, (TOKENS, SOURCE[:2]), 12)
    with pytest.raises(TypeError, match="cannot be run a position at a time: what it gives depends on later positions"):
        language.empty_cache(drawn(lambda: decoder(1, decoder_block(8, 2, causal=False), layer_norm(8))), 1, 4)


# --- What is told ------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Doubled(Layer[None]):
    """A user's layer, at each position by itself."""

    by_position = True

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * 2, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad * 2


@attrs.frozen(eq=False)
class SumSoFar(Layer[None]):
    """A user's layer that looks back, and keeps a sum."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.cumsum(1), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.flip(1).cumsum(1).flip(1)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return torch.zeros(batch, 1, 1, dtype=torch.float64)

    @override
    def step(self, x: Tensor, cache: object, place: language.Place) -> tuple[Tensor, object]:
        assert isinstance(cache, Tensor)
        y = cache + x.cumsum(1)
        return y, y[:, -1:]


def test_layers_of_a_users() -> None:
    model = compose(tree.cast_to(initialize(key(0), embedding(VOCABULARY, 4)), torch.float64), Doubled(), SumSoFar())
    assert_trees_close(in_parts(model, TOKENS, 0, 3, 1, 8), apply(model, TOKENS), rtol=1e-12, atol=1e-12)


def test_what_cannot_be_stepped_is_told() -> None:
    def refused(*layers: Model, kind: type[Exception] = TypeError) -> str:
        model = initialize(key(0), compose(embedding(VOCABULARY, 16), *layers))
        with pytest.raises(kind) as caught:
            language.prefill(model, TOKENS, 12)
        return "\n".join([str(caught.value), *caught.value.__notes__])

    said = refused(transformer_block(16, 2))
    assert said.startswith("SelfAttention(causal=False) cannot be run a position at a time: what it gives depends on later")
    assert "in model[1][0].layers[1]: SelfAttention(" in said
    assert "a bidirectional LSTM cannot be run a position at a time" in refused(lstm(16, 8, bidirectional=True))
    assert "SelfAttention has a key, but is run" in refused(
        rekey(self_attention(16, 2, causal=True, dropout=0.1), key(0)), kind=ValueError
    )
    masked = with_mask(self_attention(16, 2, causal=True), torch.ones(3, 12, dtype=torch.bool))
    assert "SelfAttention has a mask, but is run" in refused(masked, kind=ValueError)
    said = refused(linear(16, 16), Users())
    assert "Users cannot be run a position at a time" in said
    assert "say by_position = True on its class, or write its first_cache and step" in said
    said = refused(learned_positions(8, 16), kind=ValueError)
    assert "LearnedPositions knows 8 positions, but the cache is for 12" in said


@attrs.frozen(eq=False)
class Users(Layer[None]):
    """A user's layer that says nothing."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.flip(1), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.flip(1)


def test_inputs_that_do_not_fit_are_told() -> None:
    model = drawn(gpt)
    _, cache = language.prefill(model, TOKENS[:, :5], 6)
    language.step(model, TOKENS[:, 5], cache)
    with pytest.raises(
        ValueError, match=r"the cache has memory for 6 positions, and would need it for 7: make it with a larger"
    ):
        language.step(model, TOKENS[:, 5:7], cache)
    with pytest.raises(ValueError, match=r"the cache is of 3 sequences, but the input is of shape \(2, 1\)"):
        language.step(model, TOKENS[:2, 5], cache)
    with pytest.raises(TypeError, match="a step takes the cache that prefill or empty_cache made"):
        language.step(model, TOKENS[:, 5], (cache,))  # type: ignore[arg-type]  # the error under test
    with pytest.raises(ValueError, match="the input has 12 positions, but the cache is to have memory for 8"):
        language.prefill(model, TOKENS, 8)
    with pytest.raises(ValueError, match="prefill wants the padding of a masked input behind what is real"):
        language.prefill(model, Masked(TOKENS, torch.arange(12).expand(3, 12) > 3), 12)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        language.empty_cache(model, 0, 8)
    with pytest.raises(ValueError, match="the model has no values yet"):
        language.prefill(gpt(), TOKENS, 12)
