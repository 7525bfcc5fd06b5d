"""Tokens that a model writes, each drawn from what it makes of all before."""

import math
from typing import Final, final

import attrs
import torch
from torch import Tensor

from fundl import random
from fundl._common.checks import as_model
from fundl._common.modes import no_grad
from fundl._common.suggestions import require_tensor, with_suggestions
from fundl._compiling.function import jit
from fundl.language._sampling import Choice, chosen
from fundl.language.caches import Cache, WithMemory, prefill_to_last, run
from fundl.layer import Model
from fundl.layers.masked import Masked
from fundl.random import Key
from fundl.training._step_runner import Compile, pays
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class _Writing(Record):
    """How far writing has come: the cache of all tokens but the last, that one (B,), and which sequences have ended (B,)."""

    cache: Cache
    token: Tensor
    ended: Tensor


@attrs.frozen(eq=False)
class _Numbers(Record):
    """What a token is drawn with: see `chosen`."""

    draw: Tensor
    temperature: Tensor
    top_p: Tensor | None


def _next(model: Model, state: _Writing, numbers: _Numbers, choice: Choice) -> _Writing:
    """One token more; the cache stays as it is."""
    return _written(model, state, numbers, choice, used=None)


def _written(
    model: Model, state: _Writing, numbers: _Numbers, choice: Choice, *, used: int | None, writes_over: bool = False
) -> _Writing:
    logits, cache = run(model, state.token, state.cache, writes_over=writes_over, used=used)
    return _Writing(cache, *_drawn(logits, state.ended, numbers, choice))


def _drawn(logits: Tensor, ended: Tensor, numbers: _Numbers, choice: Choice) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, and which have ended with it."""
    token = chosen(choice, logits, numbers.draw, numbers.temperature, numbers.top_p)
    if choice.stop is None:
        return token, ended
    token = torch.where(ended, choice.stop, token)
    return token, ended | (token == choice.stop)


_COMPILED: Final = jit(_next, static="choice", donate="state")


@with_suggestions
def generate(
    key: Key,
    model: Model,
    prompt: Tensor | Masked | WithMemory,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    length: int | None = None,
    compile: Compile = "auto",  # noqa: A002  # as everywhere in fundl
) -> Tensor:
    """Tokens that a model writes behind a prompt, each drawn from what it makes of all before.

    The model is run once for all of the prompt, and once for each token, with a `Cache`: see `step` for what models can be run
    so. The same key gives the same tokens, and a sequence those that it would get alone with its own row of the draws.

    Args:
        key: what the tokens are drawn from.
        model: from tokens (B, T) to logits (B, T, V).
        prompt: what is there at first, at least one token of each sequence: (B, T), or (T,) for one sequence; or `Masked`,
            where they are of different lengths, with padding behind. For a model that looks at a memory, the pair of it and of
            what the memory is made of, such as the tokens (B, S) to translate.
        count: how many tokens to write.
        temperature: what logits are divided by: at 1, the default, tokens are drawn as the model predicts them, below 1 the
            likely ones more often, and at 0 the likeliest is taken.
        top_k: from how many of the likeliest to draw; None, the default, for all.
        top_p: draw from the likeliest tokens that have this likelihood together, above 0 and up to 1; None, the default, for
            all.
        stop: the token that ends a sequence: from then on it is written alone, and no more once all sequences have ended.
        length: how many positions the cache has memory for, at least T + count - 1, which is the default. What is compiled is
            for a length: take the same one for prompts of different lengths.
        compile: whether to compile what is run for each token: True, False, or "auto", the default, where it pays.

    Returns:
        The tokens that were written, (B, count), or (count,) for one sequence; fewer, if all sequences ended before.

    Raises:
        ValueError: an option is out of its range, the cache is too short, or a layer knows fewer positions.
        TypeError: a layer of the model cannot be run a position at a time.
        FloatingPointError: a logit is not a number.

    Source:
        Holtzman, Buys, Du, Forbes and Choi, The curious case of neural text degeneration, 2019, for top_p.

    >>> import torch
    >>> from fundl import compose, embedding, initialize, key, language, linear, transformer_block
    >>> block = transformer_block(8, 2, causal=True, rotary=10_000.0)
    >>> model = initialize(key(0), compose(embedding(10, 8), block, linear(8, 10)))
    >>> language.generate(key(1), model, torch.tensor([1, 2, 3]), 5, temperature=0.8, top_k=4).shape
    torch.Size([5])
    """
    params = as_model(model)
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f'compile is "auto", True or False, not {compile!r}')
    _require_options(count, temperature, top_k, top_p)
    text, memory = prompt if isinstance(prompt, tuple) else (prompt, None)
    values = text.values if isinstance(text, Masked) else text
    require_tensor(values, "the prompt must be")
    is_alone = values.ndim == 1
    if is_alone:
        text = values = values.unsqueeze(0)
        memory = None if memory is None else memory.unsqueeze(0)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"the prompt must be of shape (B, T) with a token at least, not {tuple(values.shape)}")
    batch, steps = values.shape
    needed = steps + max(count, 1) - 1
    length = needed if length is None else length
    if length < needed:
        raise ValueError(
            f"length={length} is too short for a prompt of {steps} tokens and {count} more: it must be {needed} at least"
        )
    choice = Choice(temperature == 0, top_k, stop)
    with no_grad():
        draws = random.uniform(key.to(values.device), (count, batch), dtype=torch.float64)
        heat, part = (None if x is None else torch.full((), x, device=values.device) for x in (temperature, top_p))
        assert heat is not None  # the temperature is a number
        is_compiled = compile is True or (compile == "auto" and pays(count, params))
        given = text if memory is None else (text, memory)
        written = _write(params, given, length, choice, _Numbers(draws, heat, part), is_compiled=is_compiled)
    if (written < 0).any():
        raise FloatingPointError("a logit of the model is not a number: fundl.check_finite(model, x) says where it comes from")
    return written[0] if is_alone else written


def _write(  # all that writing depends on
    model: Model, prompt: Tensor | Masked | WithMemory, length: int, choice: Choice, numbers: _Numbers, *, is_compiled: bool
) -> Tensor:
    """The tokens (B, count), from draws (count, B)."""
    logits, cache = prefill_to_last(model, prompt, length)
    text = prompt[0] if isinstance(prompt, tuple) else prompt
    used = (text.values if isinstance(text, Masked) else text).shape[1]
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    tokens: list[Tensor] = []
    state: _Writing | None = None
    for draw in numbers.draw.unbind():
        own = attrs.evolve(numbers, draw=draw)
        if state is None:
            state = _Writing(cache, *_drawn(logits, ended, own, choice))
        elif is_compiled:
            state = _COMPILED(model, state, own, choice)
        else:
            used += 1
            state = _written(model, state, own, choice, used=used, writes_over=True)
        tokens.append(state.token.clone())
        if choice.stop is not None and state.ended.all():
            break
    return torch.stack(tokens, 1) if tokens else cache.position.new_empty(len(logits), 0)


def _require_options(count: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if count < 0:
        raise ValueError(f"count, how many tokens to write, must be at least 0, not {count}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number of 0 or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k, from how many tokens to draw, must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p, a likelihood, must be above 0 and at most 1, not {top_p}")
