"""What takes no process of its own: fundl and torch take turns in this one, on one thread.

Random numbers, first parameters and a step with dropout of `benchmarks.drawing`; the first parameters of a GPT; and what is
done once to a network of any depth, which shows how it grows with the depth, and has no peer.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import nn

from benchmarks import drawing
from benchmarks.session import Measured
from benchmarks.turns import Side, in_turns
from fundl import (
    Model,
    ReLU,
    adam,
    compose,
    embedding,
    initialize,
    key,
    layer_norm,
    linear,
    load,
    save,
    summary,
    transformer_block,
    tree,
)

FEATURES: Final = 768
HEADS: Final = 12
BLOCKS: Final = 12
TOKENS: Final = 50257
WIDTH: Final = 64
DEPTHS: Final = (4, 32, 128)


@attrs.frozen
class Pair:
    """Something to do.

    Args:
        ours: how fundl does it.
        theirs: how torch does it, if it can.
        grows: how many layers it is done to, if there are others with more; else 0.
    """

    ours: Side
    theirs: Side | None = None
    grows: int = 0


def pairs() -> dict[str, Callable[[], Pair]]:
    """Names, and what makes each: large networks are made only for as long as they are measured."""
    parts = (*drawing.draws(), *drawing.networks(), *drawing.steps())
    found: dict[str, Callable[[], Pair]] = {name.replace(" ", "-"): partial(Pair, ours, theirs) for name, ours, theirs in parts}
    found["initialize-gpt"] = partial(Pair, _gpt, _torch_gpt)
    return found | {f"{name}-{depth}": partial(_once, name, depth) for name in _ONCE for depth in DEPTHS}


def measured(name: str, pair: Pair, rounds: int) -> Iterator[Measured]:
    """Seconds of the sides."""
    torch.set_num_threads(1)
    sides = [pair.ours, *([pair.theirs] if pair.theirs else [])]
    columns = zip(*in_turns(sides, rounds), strict=True)
    for peer, values in zip(("fundl-eager", "torch-eager"), columns, strict=False):
        yield Measured(name, peer, "", values, grows=pair.grows)


def _gpt() -> Model:
    """162 million parameters with values."""
    block = transformer_block(FEATURES, HEADS, causal=True)
    first, last = embedding(TOKENS, FEATURES), linear(FEATURES, TOKENS)
    return initialize(key(0), compose(first, *[block] * BLOCKS, layer_norm(FEATURES), last))


def _torch_gpt() -> nn.Module:
    blocks = [nn.TransformerEncoderLayer(FEATURES, HEADS, 4 * FEATURES, norm_first=True) for _ in range(BLOCKS)]
    return nn.Sequential(nn.Embedding(TOKENS, FEATURES), *blocks, nn.LayerNorm(FEATURES), nn.Linear(FEATURES, TOKENS))


# --- What is done once ---------------------------------------------------------------------------------------------------


def _composed(depth: int) -> Model:
    layers: list[Model] = []
    for _ in range(depth):
        layers += [linear(WIDTH, WIDTH), ReLU()]
    return compose(*layers)


def _once(name: str, depth: int) -> Pair:
    return Pair(_ONCE[name](depth), grows=depth)


def _initialize(depth: int) -> Side:
    return partial(initialize, key(0), _composed(depth))


def _of_values(do: Callable[[Model], object]) -> Callable[[int], Side]:
    return lambda depth: partial(do, _initialized(depth))


def _initialized(depth: int) -> Model:
    return initialize(key(0), _composed(depth))


def _load(depth: int) -> Side:
    like = _initialized(depth)
    _save(like)
    return lambda: load(_PATH, like)


def _save(model: Model) -> None:
    save(_PATH, model)


_PATH: Final = Path(tempfile.gettempdir()) / "fundl-benchmarks.safetensors"
_ONCE: Final[Mapping[str, Callable[[int], Side]]] = {
    "compose": lambda depth: partial(_composed, depth),
    "initialize": _initialize,
    "state": _of_values(adam(0.001).init),
    "summary": _of_values(lambda model: summary(model, (10, WIDTH))),
    "count": _of_values(tree.count),
    "save": _of_values(_save),
    "load": _load,
}
