"""Training over many processes: fundl beside torch's DistributedDataParallel and FSDP2, at equal work.

    python -m benchmarks.many_processes
    python -m benchmarks.many_processes --network transformer --processes 2 --rounds 15 --compiled

The processes have one thread each, and all sides train the same network from the same parameters with AdamW, each on its rows
of the same batch. All write over the parameters that they had, as `fit` does; "kept" is the same step over the processes
that keeps the state it was given. The sides take turns in the same processes. `mlp` is 784-2048-1664-10 with 256 rows, 5.0
million parameters; `transformer` 4 blocks of 256 features with 8 x 128 tokens, 3.2 million. The ratio is the median over the
turns of a side's seconds over those of fundl's side that has the same memory: above 1, fundl is quicker. What is sent is what
the loopback device of Linux has counted, of all programs: measure where nothing else runs. With --memory, each side runs alone,
and what is printed is the most memory that its steps take beside that of the process before it.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import torch
import typer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.torch_networks import Transformer
from benchmarks.turns import machine
from fundl import (
    Model,
    ReLU,
    adamw,
    compose,
    cross_entropy,
    distributed,
    embedding,
    initialize,
    jit,
    key,
    layer_norm,
    linear,
    random,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl.distributed import Group

NetworkName: TypeAlias = Literal["mlp", "transformer"]
Batch: TypeAlias = tuple[Tensor, Tensor]
Side: TypeAlias = Callable[[], Tensor]
"""One step, to its loss."""

RATE: Final = 1e-3
DECAY: Final = 0.01
FEATURES: Final = 256
HEADS: Final = 4
TOKENS: Final = 65
BLOCKS: Final = 4
STEPS: Final = 3  # of a turn
_COUNTER: Final = Path("/sys/class/net/lo/statistics/tx_bytes")
_WORKER: Final = "FUNDL_BENCHMARKED_NETWORK"  # which a process of the group measures
_PEERS: Final = {
    "fundl": "fundl",
    "torch.nn": "fundl",
    "fundl, over=": "fundl, over=",
    "DDP": "fundl, over=",
    "fundl, kept": "fundl, over=",
    "fundl, shard": "fundl, shard",
    "FSDP2": "fundl, shard",
}


def parts_of(network: NetworkName) -> list[Model]:
    """The network, in the parts that are sharded together."""
    if network == "mlp":
        return [linear(784, 2048), ReLU(), linear(2048, 1664), ReLU(), linear(1664, 10)]
    blocks = [transformer_block(FEATURES, HEADS, causal=True) for _ in range(BLOCKS)]
    return [embedding(TOKENS, FEATURES), *blocks, (layer_norm(FEATURES), linear(FEATURES, TOKENS))]


def module_of(network: NetworkName, model: Model) -> nn.Module:
    """The network as torch.nn has it, with the parameters of a model."""
    module: nn.Module = Transformer(BLOCKS, FEATURES, HEADS, TOKENS)
    if network == "mlp":
        module = nn.Sequential(nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 1664), nn.ReLU(), nn.Linear(1664, 10))
    with torch.no_grad():
        for parameter, leaf in zip(module.parameters(), tree.trainable_leaves(model), strict=True):
            parameter.copy_(leaf)
    return module


def batch_of(network: NetworkName, group: Group) -> Batch:
    """The rows of a process of the batch."""
    if network == "mlp":
        x, target = random.normal(key(1), (256, 784)), random.randint(key(2), (256,), low=0, high=10)
    else:
        x, target = (random.randint(key(seed), (8, 128), low=0, high=TOKENS) for seed in (1, 2))
    return x[group.rank :: group.size].clone(), target[group.rank :: group.size].clone()


def sides_of(network: NetworkName, group: Group, *, compiled: bool) -> Iterator[tuple[str, Callable[[], Side]]]:
    """What is compared, each with how it is made ready."""
    parts, batch = parts_of(network), batch_of(network, group)
    whole = initialize(key(0), compose(*parts))
    sharded = [part if isinstance(part, ReLU) else distributed.shard(group, part) for part in parts]
    yield "fundl", lambda: _ours(whole, batch, None, compiled)
    yield "torch.nn", lambda: _theirs(module_of(network, whole), batch, compiled)
    yield "fundl, over=", lambda: _ours(whole, batch, group, compiled)
    yield (
        "DDP",
        lambda: _theirs(DistributedDataParallel(module_of(network, whole), gradient_as_bucket_view=True), batch, compiled),
    )
    if not compiled:
        yield "fundl, kept", lambda: _ours(whole, batch, group, compiled, donate=False)
    yield "fundl, shard", lambda: _ours(initialize(key(0), compose(*sharded)), batch, group, compiled)
    if not compiled:  # torch.compile of FSDP2's hooks is torch's experiment
        yield "FSDP2", lambda: _theirs(_fully_sharded(module_of(network, whole)), batch, compiled)


def _ours(model: Model, batch: Batch, over: Group | None, compiled: bool, *, donate: bool = True) -> Side:
    optimizer = adamw(RATE, weight_decay=DECAY)
    plain = train_step(_each_position, optimizer, over=over, donate=donate and not compiled)
    step = jit(plain, donate="state") if compiled else plain
    state = train_state(key(4), tree.map(torch.clone, model), optimizer)

    def run() -> Tensor:
        nonlocal state
        state, report = step(state, batch)
        return report.loss

    return run


def _theirs(module: nn.Module, batch: Batch, compiled: bool) -> Side:
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    apply: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
    x, target = batch

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(apply(x).flatten(0, -2), target.flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return run


def _replicated(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def _fully_sharded(module: nn.Module) -> nn.Module:
    for part in [*module.children()][:-2] if isinstance(module, Transformer) else module.children():
        for block in part if isinstance(part, nn.Sequential) else [part]:
            if [*block.parameters()]:
                fully_shard(block)
    fully_shard(module)
    return module


def _each_position(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = cross_entropy(prediction.flatten(0, -2), target.flatten())
    return value, grad.reshape(prediction.shape)


def measure(network: NetworkName, rounds: int, *, compiled: bool) -> None:
    """What each process of a group does; the first prints."""
    group, _ = distributed.start(device="cpu")
    sides: dict[str, Side] = {}
    for name, make in sides_of(network, group, compiled=compiled):
        sides[name] = make()
        losses = [sides[name]().item() for _ in range(3)]
        if group.rank == 0:
            print(f"# {name}: first losses of the first process {', '.join(f'{loss:.5f}' for loss in losses)}", flush=True)
    turns = [{name: _turn(side, group) for name, side in sides.items()} for _ in range(rounds)]
    if group.rank == 0:
        _print(turns)


def measure_memory(network: NetworkName, name: str, *, compiled: bool) -> None:
    """What each process of a group does for one side alone: the first prints the most memory of its steps."""
    group, _ = distributed.start(device="cpu")
    before = _memory("VmRSS")
    side = dict(sides_of(network, group, compiled=compiled))[name]()
    for _ in range(STEPS):
        side()
    Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM is the most since
    for _ in range(STEPS):
        side()
    if group.rank == 0:
        print(f"{name:14}{_memory('VmHWM') - before:>9.0f}", flush=True)


def _memory(kind: str) -> float:
    """The megabytes of this process's memory, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{kind}:"))


def _turn(side: Side, group: Group) -> tuple[float, float, float]:
    """The seconds, the processor's seconds and the bytes that are sent, of a step of a process."""
    distributed.all_sum(torch.zeros(1), group)
    sent, start, processor = _sent(), time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        side()
    distributed.all_sum(torch.zeros(1), group)
    taken, used = time.perf_counter() - start, time.process_time() - processor
    return taken / STEPS, used / STEPS, (_sent() - sent) / STEPS / group.size


def _sent() -> float:
    return float(_COUNTER.read_text()) if _COUNTER.exists() else float("nan")


def _print(turns: Sequence[Mapping[str, tuple[float, float, float]]]) -> None:
    print(f"{'':14}{'ms':>9}{'CPU ms':>9}{'MB sent':>9}{'ratio':>8}{'of CPU':>8}")
    for name in turns[0]:
        taken, used, sent = (statistics.median(turn[name][kind] for turn in turns) for kind in range(3))
        ratio, of_cpu = (statistics.median(turn[name][kind] / turn[_PEERS[name]][kind] for turn in turns) for kind in range(2))
        print(f"{name:14}{1e3 * taken:>9.1f}{1e3 * used:>9.1f}{sent / 1e6:>9.2f}{ratio:>8.2f}{of_cpu:>8.2f}")


def main(
    *,
    network: Annotated[list[str] | None, typer.Option(help="mlp or transformer; both by default.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 15,
    compiled: Annotated[bool, typer.Option("--compiled", help="By jit and torch.compile, rather than eager.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="The memory of each side alone, rather than times.")] = False,
) -> None:
    """Print what each side takes, and how many times as long as fundl's."""
    names = network or ["mlp", "transformer"]
    for name in names:
        if name not in {"mlp", "transformer"}:
            raise typer.BadParameter(f"there is no {name!r}: mlp or transformer", param_hint="--network")
    print(machine())
    for name in names:
        print(f"{name}, {processes} processes, {'compiled' if compiled else 'eager'}{', MB' if memory else ''}", flush=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launch, "-m", "benchmarks.many_processes", str(rounds), str(int(compiled))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", _WORKER: name}
        for side in (side for side in _PEERS if not (compiled and side == "FSDP2")) if memory else [""]:
            subprocess.run([*command, side], check=True, env=environment)


if __name__ == "__main__":
    chosen = os.environ.get(_WORKER)
    if chosen is None:
        typer.run(main)
    else:
        trained: NetworkName = "mlp" if chosen == "mlp" else "transformer"
        if sys.argv[3]:
            measure_memory(trained, sys.argv[3], compiled=sys.argv[2] == "1")
        else:
            measure(trained, int(sys.argv[1]), compiled=sys.argv[2] == "1")
