"""Tokens that a model writes: the likeliest, and drawn ones; from a key, with a stop, compiled."""

import math
from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    Embedding,
    Masked,
    Model,
    apply,
    compose,
    embedding,
    initialize,
    key,
    language,
    linear,
    random,
    transformer_block,
    tree,
)
from fundl.language._sampling import Choice, chosen
from tests.test_language import TOKENS, drawn, gpt, llama

PROMPT: Final = TOKENS[:, :4]


def by_hand(model: Model, prompt: Tensor, count: int) -> Tensor:
    """The likeliest tokens, with the whole sequence run for each."""
    text = prompt
    for _ in range(count):
        text = torch.cat((text, apply(model, text)[:, -1:].argmax(-1)), 1)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("make", [gpt, llama])
@pytest.mark.parametrize("compile", [False, True])
def test_the_likeliest_tokens(make: Callable[[], Model], compile: bool) -> None:  # noqa: A002  # as generate has it
    model = drawn(make)
    assert torch.equal(language.generate(key(0), model, PROMPT, 8, temperature=0, compile=compile), by_hand(model, PROMPT, 8))


def test_a_key_gives_the_same_tokens_compiled_or_not() -> None:
    model = drawn(gpt)
    options = {"temperature": 1.3, "top_k": 9, "top_p": 0.9}
    eager, compiled, again = (
        language.generate(key(3), model, PROMPT, 12, compile=how, **options)  # type: ignore[arg-type]  # named above
        for how in (False, True, False)
    )
    assert torch.equal(eager, compiled)
    assert torch.equal(eager, again)
    assert not torch.equal(eager, language.generate(key(4), model, PROMPT, 12, **options))  # type: ignore[arg-type]  # likewise


def test_a_longer_cache_changes_nothing() -> None:
    model = drawn(gpt)
    longer = language.generate(key(3), model, PROMPT, 8, length=20)
    assert torch.equal(language.generate(key(3), model, PROMPT, 8), longer)
    assert torch.equal(language.generate(key(3), model, PROMPT, 8, length=20, compile=True), longer)


def test_prompts_of_different_lengths() -> None:
    model = drawn(llama)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    tokens = language.generate(key(0), model, Masked(PROMPT, mask), 6, temperature=0)
    for row, length in enumerate((4, 2, 1)):
        assert torch.equal(tokens[row : row + 1], by_hand(model, PROMPT[row : row + 1, :length], 6))


def test_one_sequence_without_an_axis_for_it() -> None:
    model = drawn(gpt)
    alone = language.generate(key(0), model, PROMPT[0], 6, temperature=0)
    assert torch.equal(alone, language.generate(key(0), model, PROMPT[:1], 6, temperature=0)[0])
    assert language.generate(key(0), model, PROMPT, 0).shape == (3, 0)


def bigrams(scores: Tensor) -> Model:
    """A model whose logits after a token are a row of scores."""
    return compose(Embedding(scores))


def test_tokens_come_as_often_as_they_are_predicted() -> None:
    likelihoods = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    model, prompt = bigrams(likelihoods.log().expand(4, 4)), torch.zeros(5000, 1, dtype=torch.int64)

    def often(**options: float) -> Tensor:
        return torch.bincount(language.generate(key(0), model, prompt, 4, **options).flatten(), minlength=4) / 20_000  # type: ignore[arg-type]  # named

    def near(expected: list[float], **options: float) -> None:
        weights = torch.tensor(expected) / sum(expected)
        assert (often(**options) - weights).abs().max() < 4 * math.sqrt(0.25 / 20_000)
        assert not often(**options)[weights == 0].any()

    near([0.5, 0.3, 0.15, 0.05])
    near([0.25, 0.09, 0.0225, 0.0025], temperature=0.5)
    near([0.5, 0.3, 0, 0], top_k=2)
    near([0.5, 0.3, 0.15, 0.05], top_k=9)
    near([0.5, 0.3, 0, 0], top_p=0.6)
    near([0.5, 0.3, 0.15, 0], top_p=0.81)
    near([1, 0, 0, 0], top_p=0.2)
    near([0.5, 0.3, 0.15, 0.05], top_p=1.0)
    near([1, 0, 0, 0], temperature=0)


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    choice, heat = Choice(greedy=False, top_k=None, stop=None), torch.ones(())
    for draw, token in ((0.0, 1), (0.4999, 1), (0.5, 3), (1 - 1e-16, 3)):
        drawn = chosen(choice, logits, torch.tensor([draw], dtype=torch.float64), heat, None)
        assert drawn.tolist() == [token]


def test_a_stop_ends_each_sequence_and_then_all() -> None:
    follows = torch.full((4, 4), -20.0).scatter(1, torch.tensor([[1], [2], [3], [0]]), 20.0)
    model, prompt = bigrams(follows), torch.tensor([[0], [1], [2]])
    tokens = language.generate(key(0), model, prompt, 10, temperature=0, stop=3)
    assert tokens.tolist() == [[1, 2, 3], [2, 3, 3], [3, 3, 3]]
    assert torch.equal(language.generate(key(0), model, prompt, 10, temperature=0, stop=3, compile=True), tokens)


def test_what_generate_refuses() -> None:
    model = drawn(gpt)
    cases: dict[str, dict[str, object]] = {
        r"count, how many tokens to write, must be at least 0, not -1": {"count": -1},
        r"temperature must be a finite number of 0 or more, not -1": {"temperature": -1.0},
        r"top_k, from how many tokens to draw, must be at least 1, not 0": {"top_k": 0},
        r"top_p, a likelihood, must be above 0 and at most 1, not 1.5": {"top_p": 1.5},
        r"length=5 is too short for a prompt of 4 tokens and 8 more: it must be 11 at least": {"length": 5},
        r"LearnedPositions knows 20 positions, but the cache is for 30": {"length": 30},
        r"the prompt must be of shape \(B, T\) with a token at least, not \(3, 0\)": {"prompt": PROMPT[:, :0]},
    }
    for said, options in cases.items():
        with pytest.raises(ValueError, match=said):
            language.generate(key(0), model, **{"prompt": PROMPT, "count": 8, **options})  # type: ignore[arg-type]  # named above
    broken = compose(tree.map(lambda leaf: leaf * math.nan, initialize(key(0), embedding(17, 17))))
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match=r"a logit of the model is not a number: fundl.check_finite"):
            language.generate(key(0), broken, PROMPT, 1, temperature=temperature)


def test_the_model_and_the_prompt_stay_as_they_are() -> None:
    model, prompt = drawn(llama), PROMPT.clone()
    before = tree.map(torch.clone, model)
    for how in (False, True):
        language.generate(key(0), model, prompt, 6, compile=how)
    assert tree.equal(model, before)
    assert torch.equal(prompt, PROMPT)


def test_half_precision_and_inference_mode() -> None:
    block = transformer_block(16, 4, causal=True, rotary=100.0)
    model = initialize(key(0), compose(embedding(17, 16), block, linear(16, 17)))
    with torch.inference_mode():
        inside = language.generate(key(0), model, PROMPT, 6, compile=False)
    assert torch.equal(inside.clone(), language.generate(key(0), model, PROMPT, 6, compile=False))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tokens = language.generate(key(0), tree.cast_to(model, dtype), PROMPT, 6)
        assert tokens.shape == (3, 6)


def test_the_draws_are_the_keys() -> None:
    """Each token is drawn by a number of its own, and a sequence's numbers are its column."""
    model = bigrams(torch.zeros(10, 10))
    tokens = language.generate(key(5), model, torch.zeros(2, 1, dtype=torch.int64), 7)
    draws = random.uniform(key(5), (7, 2), dtype=torch.float64)
    assert torch.equal(tokens, (draws * 10).floor().to(torch.int64).t())
