"""Models of sequences, run a few positions at a time: what layers keep of the positions before is a value, the cache."""

from collections.abc import Callable
from typing import Generic, TypeAlias, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar

from fundl import tree
from fundl._common.checks import as_model
from fundl._common.listed import Listed
from fundl._common.modes import is_readable, no_grad
from fundl._common.place import Place
from fundl._common.running import not_initialized
from fundl._common.stepping import first_cache, run_step, run_to_last
from fundl._common.suggestions import require_tensor, with_suggestions
from fundl._common.tape import refuse_tape
from fundl.layer import Model
from fundl.layers.masked import Masked
from fundl.tree import Record

Kept = TypeVar("Kept", default=object)

WithMemory: TypeAlias = tuple[Tensor | Masked, Tensor]
"""The first positions of sequences, and what a memory is made of: the memory itself, or what an encoder takes."""


@final
@attrs.frozen(eq=False)
class Cache(Record, Generic[Kept], metaclass=Listed):
    """What a model keeps of the positions of sequences that it was run at; made by `prefill` and `empty_cache`.

    It is a value: `step` makes another one, and the old one can be stepped from again. It can be saved, compiled, and donated.

    Args:
        position: (B,), how many positions of each sequence were run.
        layers: what the layers keep, as a tree like the model: keys and values, the states of recurrences, or nothing.
        length: how many positions there is memory for.
        has_memory: whether the model looks at a memory, whose keys and values are among what layers keep.
    """

    position: Tensor
    layers: Kept
    length: int
    has_memory: bool = False


@with_suggestions
def empty_cache(model: Model, batch: int, length: int) -> Cache:
    """The cache before the first position.

    Args:
        model: a layer or a nested tuple of layers, with values, that can be run a position at a time: see `step`.
        batch: how many sequences there are.
        length: how many positions there is to be memory for.

    Raises:
        TypeError: a layer of the model cannot be run a position at a time; a note names its place.
        ValueError: a layer knows fewer positions, or has a mask.

    >>> from fundl import initialize, key, language, self_attention
    >>> language.empty_cache(initialize(key(0), self_attention(8, 2, causal=True)), 1, length=16).layers
    KeysAndValues(keys=float32[1, 16, 2, 4], values=float32[1, 16, 2, 4])
    """
    for name, size in (("batch", batch), ("length", length)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    params = as_model(model)
    refuse_tape(params)
    with no_grad():
        layers = first_cache(params, batch, length)
        position = torch.zeros(batch, dtype=torch.int64, device=_device(params))
    return Cache(position, layers, length)


def _device(model: object) -> torch.device | None:
    return next((leaf.device for leaf in tree.leaves(model)), None)


@with_suggestions
def prefill(model: Model, x: Tensor | Masked | WithMemory, length: int) -> tuple[Tensor, Cache]:
    """The output of a model at the first positions of sequences, and the cache to go on from.

    Args:
        model: see `step`.
        x: the input at the first T positions: tokens (B, T), or whatever the first layer takes, (B, T, ...). Sequences of
            different lengths are `Masked`, with the padding behind: each goes on from its own length. For a model that looks at
            a memory, such as a `decoder`, the pair of them and of what the memory is made of: it is given here alone, and what
            the steps that follow need of it is in the cache.
        length: how many positions the cache is to have memory for, these among them.

    Returns:
        What `apply` gives, and the cache.

    Raises:
        ValueError: the input is longer than the length, or padding is before what is real; or there is padding, and a layer
            is recurrent, whose state after it would be that of padding.

    All else is as of `step`.

    >>> import torch
    >>> from fundl import apply, compose, embedding, initialize, key, language, linear, transformer_block
    >>> block = transformer_block(8, 2, causal=True)
    >>> model = initialize(key(0), compose(embedding(10, 8), block, linear(8, 10)))
    >>> logits, cache = language.prefill(model, torch.tensor([[1, 2, 3]]), length=16)
    >>> torch.allclose(logits, apply(model, torch.tensor([[1, 2, 3]])), atol=1e-5)
    True
    """
    return _prefilled(model, x, length, run_step, last=None)


def prefill_to_last(model: Model, given: Tensor | Masked | WithMemory, length: int) -> tuple[Tensor, Cache]:
    """`prefill`, of which only the last output of each sequence is wanted, (B, ...)."""
    x = given[0] if isinstance(given, tuple) else given
    last = x.mask.sum(1) - 1 if isinstance(x, Masked) else torch.full((len(x),), x.shape[1] - 1, device=x.device)
    y, cache = _prefilled(model, given, length, run_to_last, last=last)
    return y.squeeze(1), cache


_Run: TypeAlias = Callable[[object, object, object, Place], tuple[object, object]]


def _prefilled(
    model: Model, given: Tensor | Masked | WithMemory, length: int, run: _Run, *, last: Tensor | None
) -> tuple[Tensor, Cache]:
    x, memory = given if isinstance(given, tuple) else (given, None)
    values, mask = (x.values, x.mask) if isinstance(x, Masked) else (x, None)
    require_tensor(values, "x, the input, must be")
    if values.ndim < 2:
        raise ValueError(f"prefill takes the first positions of sequences, (B, T, ...), not {tuple(values.shape)}")
    batch, steps = values.shape[:2]
    if steps > length:
        raise ValueError(f"the input has {steps} positions, but the cache is to have memory for {length}: make it longer")
    if mask is not None and is_readable(mask) and not torch.equal(mask.cummin(1)[0], mask):
        raise ValueError("prefill wants the padding of a masked input behind what is real, at the end of each sequence")
    cache = empty_cache(model, batch, length)
    at = torch.arange(steps, device=cache.position.device).expand(batch, steps)
    with no_grad():
        place = Place(at, length, is_first=True, writes_over=True, is_padded=mask is not None, last=last)
        y, layers = run(model, values if memory is None else (values, memory), cache.layers, place)
        if isinstance(y, Tensor) and y.is_meta and not values.is_meta:
            raise not_initialized()
        position = cache.position + steps if mask is None else mask.sum(1).to(cache.position.device)
    return cast("Tensor", y), Cache(position, layers, length, memory is not None)


@with_suggestions
def step(model: Model, x: Tensor, cache: Cache[Kept]) -> tuple[Tensor, Cache[Kept]]:
    """The output of a model at the next positions of sequences, and the next cache.

    It is what `apply` gives at these positions of the whole sequences, up to rounding; but of all positions before, nothing is
    computed again. The model is composed of layers each of whose outputs depends on no later position: embeddings, positions
    (learned, sinusoidal, rotary), causal self-attention, recurrent layers in one direction, linear layers, norms of features,
    activations; and of layers of them: `residual`, `repeat`, `tied`, `parallel`, `checkpoint`, `frozen`, `mixed_precision`. A
    `decoder` looks at a memory as well, whose keys and values are found once, by `prefill`.

    A layer of yours says ``by_position = True`` on its class, if it computes each position from the same position of its input
    alone; else it writes `Layer.first_cache` and `Layer.step`.

    Args:
        model: a layer or a nested tuple of layers, without keys and masks.
        x: the input at the next positions: tokens (B, T), or (B,) for one position each; or whatever the first layer takes,
            (B, T, ...).
        cache: what `prefill`, `empty_cache` or the last step gave. It stays as it is.

    Returns:
        The output at these positions, such as logits (B, T, V), or (B, V) for tokens (B,); and the next cache.

    Raises:
        ValueError: the cache has no memory for so many positions (told on CPUs, where nothing is compiled), or is for another
            number of sequences; the input does not fit.
        TypeError: the input is of a wrong dtype.

    One token after the other, each the likeliest:

    >>> import torch
    >>> from fundl import compose, embedding, initialize, key, language, linear, transformer_block
    >>> block = transformer_block(8, 2, causal=True, rotary=10_000.0)
    >>> model = initialize(key(0), compose(embedding(10, 8), block, linear(8, 10)))
    >>> cache, token = language.empty_cache(model, batch=1, length=16), torch.tensor([3])
    >>> for _ in range(5):
    ...     logits, cache = language.step(model, token, cache)
    ...     token = logits.argmax(-1)
    >>> cache.position
    tensor([5])
    """
    require_tensor(x, "x, the input, must be")
    y, after = run(model, x, cache, writes_over=False)
    return y, after


def run(
    model: Model, x: Tensor, cache: Cache[Kept], *, writes_over: bool, used: int | None = None
) -> tuple[Tensor, Cache[Kept]]:
    """`step`, which may write over a cache that nobody else has, and of which so many positions are used."""
    if not isinstance(cache, Cache):
        raise TypeError("a step takes the cache that prefill or empty_cache made")
    is_single = x.ndim == 1
    x = x.unsqueeze(1) if is_single else x
    position = cache.position
    if x.ndim < 2 or x.shape[0] != position.shape[0]:
        raise ValueError(f"the cache is of {position.shape[0]} sequences, but the input is of shape {tuple(x.shape)}")
    steps = x.shape[1]
    if used is None and is_readable(position):
        used = int(position.max()) + steps
    if used is not None and used > cache.length:
        raise ValueError(
            f"the cache has memory for {cache.length} positions, and would need it for {used}: make it with a larger length"
        )
    with no_grad():
        at = position.unsqueeze(1) if steps == 1 else position.unsqueeze(1) + torch.arange(steps, device=position.device)
        place = Place(at, cache.length, used=used, writes_over=writes_over)
        y, layers = run_step(model, (x, None) if cache.has_memory else x, cache.layers, place)
        logits = cast("Tensor", y)  # models of sequences give tensors
        after = Cache(position + steps, cast("Kept", layers), cache.length, cache.has_memory)  # a tree like the one before
    return logits.squeeze(1) if is_single else logits, after
