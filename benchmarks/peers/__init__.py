"""The peers: what each can do, and where it is. A peer's own module, which imports its framework, is imported by `runs`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final, Protocol, TypeAlias, cast

import attrs

from benchmarks.cases import Case, NetworkName

Run: TypeAlias = Callable[[int], float]
"""Makes so many calls, from where the last one left off; waits for all that they compute; returns the last loss."""


class PeerModule(Protocol):
    """What the module of a peer holds."""

    def prepare(self, case: Case) -> Mapping[str, Run]:
        """Runs of a case with the same first parameters, one for each setting of the peer."""


@attrs.frozen
class Peer:
    """A way to train.

    Args:
        name: in tables.
        module: in this package.
        imports: what a program that trains with it imports.
        packages: whose versions matter.
        networks: that it can be asked to train.
        compiles: whether the first step compiles.
        loops: whether an epoch is one call.
        repeats: whether it has blocks that are one record, with their parameters stacked.
        deepens: whether it is asked to train networks of many depths; it need not be, if it compiles them for minutes.
    """

    name: str
    module: str
    imports: str
    packages: tuple[str, ...]
    networks: frozenset[NetworkName]
    compiles: bool = False
    loops: bool = False
    repeats: bool = False
    deepens: bool = True

    def takes(self, case: Case) -> bool:
        """Whether a case is natural for it."""
        able = (self.loops or not case.looped) and (self.repeats or not case.repeat) and (self.deepens or not case.deepens)
        return able and case.network in self.networks and (self.module != "thinc_numpy" or case.optimizer in {"sgd", "adam"})

    def prepare(self, case: Case) -> Mapping[str, Run]:
        """See `PeerModule`."""
        module = cast("PeerModule", import_module(f"benchmarks.peers.{self.module}"))  # a module is typed by nothing
        return module.prepare(case)


_DENSE: Final[frozenset[NetworkName]] = frozenset({"disk", "mlp", "dying"})
_ALL: Final[frozenset[NetworkName]] = _DENSE | {"convolutional", "lstm", "transformer", "parameters", "dropout", "deep"}

PEERS: Final[dict[str, Peer]] = {
    "fundl-jit": Peer(
        "fundl, jit and scan", "fundl_jit", "torch, fundl", ("fundl",), _ALL, compiles=True, loops=True, repeats=True
    ),
    "fundl-eager": Peer("fundl, eager", "fundl_eager", "torch, fundl", ("fundl",), _ALL | {"rows"}, repeats=True),
    "fundl-donating": Peer(
        "fundl, eager, donating",
        "fundl_donating",
        "torch, fundl",
        ("fundl",),
        frozenset({"disk", "mlp", "transformer", "parameters"}),
        deepens=False,
    ),
    "torch-eager": Peer("torch.nn, eager", "torch_eager", "torch", ("torch",), _ALL | {"rows"}),
    "torch-compile": Peer("torch.nn, torch.compile", "torch_compile", "torch", ("torch",), _ALL, compiles=True, deepens=False),
    "jax": Peer(
        "JAX, equinox, optax",
        "jax_equinox",
        "jax, equinox, optax",
        ("jax", "equinox", "optax"),
        _ALL,
        compiles=True,
        loops=True,
        repeats=True,
    ),
    "torchopt": Peer("TorchOpt, torch.func", "torchopt_func", "torch, torchopt", ("torchopt",), _ALL - {"dropout"}),
    "thinc": Peer("thinc", "thinc_numpy", "thinc.api", ("thinc",), _DENSE | {"deep"}),
    "tinygrad": Peer("tinygrad, TinyJit", "tinygrad_jit", "tinygrad", ("tinygrad",), _DENSE, compiles=True),
}
