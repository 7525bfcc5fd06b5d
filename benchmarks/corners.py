"""What it costs to be right beside the common path: layers on it, and in layouts and dtypes that go another way.

A row is a layer in one layout or dtype: how long fundl's forward and backward take together, how many times as long torch.nn's
take, and how far the gradients of both are from those in float64, relative to the largest number of the tensor that is furthest
away. Both sides take turns in one process, on one thread; the ratio is the median over the turns.

    python -m benchmarks.corners
    python -m benchmarks.corners --rounds 31 --only GroupNorm
"""

from collections.abc import Sequence
from typing import Annotated

import attrs
import torch
import typer
from torch import Tensor

from benchmarks import turns
from fundl import (
    MaxPool3d,
    Model,
    Shape,
    apply,
    backward,
    batch_norm,
    conv2d,
    embedding,
    forward,
    group_norm,
    initialize,
    key,
    layer_norm,
    linear,
    random,
    tree,
)
from fundl.interop.torch_nn import to_torch


@attrs.frozen
class Corner:
    """A layer and an input.

    Args:
        name: of the layer.
        where: the layout or dtype.
        model: with values.
        x: the input.
    """

    name: str
    where: str
    model: Model
    x: Tensor


def corners() -> list[Corner]:
    """All rows."""
    norm, rows = initialize(key(0), batch_norm(256)), normal(4096, 256)
    groups, image = initialize(key(0), group_norm(8, 32)), normal(16, 32, 32, 32) + 100
    layer, table = initialize(key(0), layer_norm(256)), initialize(key(0), embedding(16, 128))
    convolution, affine = initialize(key(0), conv2d(32, 32, 3)), initialize(key(0), linear(256, 256))
    tokens, volume = random.bits(key(2), (4096,)).remainder(16), normal(4, 8, 16, 16, 16)
    pool, last = MaxPool3d(3, stride=2), image.to(memory_format=torch.channels_last)
    return [
        Corner("BatchNorm", "contiguous", norm, rows),
        Corner("BatchNorm", "strided parameters", tree.map(strided, norm), rows),
        Corner("GroupNorm", "contiguous, mean 100", groups, image),
        Corner("GroupNorm", "channels last, mean 100", groups, last),
        *in_both("LayerNorm", layer, rows),
        *in_both("Embedding", table, tokens),
        *in_both("Conv2d", convolution, image),
        *in_both("Linear", affine, rows),
        *in_both("MaxPool3d", pool, volume),
    ]


def in_both(name: str, model: Model, x: Tensor) -> list[Corner]:
    """A layer in float32 and in bfloat16."""
    half = tree.cast_to((model, x), torch.bfloat16)
    return [Corner(name, "float32", model, x), Corner(name, "bfloat16", *half)]


def normal(*shape: int) -> Tensor:
    """A random input."""
    return random.normal(key(1), shape)


def strided(parameter: Tensor) -> Tensor:
    """The same numbers, with gaps between them."""
    return torch.stack([parameter, parameter], -1)[..., 0]


def compared(corner: Corner, rounds: int) -> tuple[float, float, float, float]:
    """The seconds of fundl, how many times as long torch.nn takes, and how far off fundl's and torch.nn's gradients are."""
    module = to_torch(corner.model, Shape(*corner.x.shape)).train()
    for parameter, leaf in zip(module.parameters(), tree.trainable_leaves(corner.model), strict=True):
        parameter.data = leaf  # laid out as it is
    x = corner.x.detach().requires_grad_(corner.x.is_floating_point())
    wanted = [leaf for leaf in (*module.parameters(), x) if leaf.requires_grad]
    output = apply(corner.model, corner.x)
    grad = random.uniform(key(3), output.shape, low=0.5, high=1.5).to(output.dtype)  # of one sign: the sums are large

    def ours() -> list[Tensor]:
        return gradients(corner.model, corner.x, grad)

    def theirs() -> list[Tensor]:
        output: Tensor = module(x)
        return [*torch.autograd.grad(output, wanted, grad)]

    exact = gradients(*tree.cast_to((corner.model, corner.x, grad), torch.float64))
    return *turns.compared(ours, theirs, rounds), distance(ours(), exact), distance(theirs(), exact)


def gradients(model: Model, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Those of the parameters, and that of the input if it has one."""
    _, residuals = forward(model, x)
    grads, grad_x = backward(model, residuals, grad)
    return [*tree.trainable_leaves(grads), *([grad_x] if grad_x.is_floating_point() else [])]


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """How far the furthest number is off, relative to the largest of its tensor."""
    return max(
        float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-3))
        for one, other in zip(found, exact, strict=True)
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 15,
    only: Annotated[str, typer.Option(help="The layer to measure; all by default.")] = "",
) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(turns.machine())
    print(f"{'layer':12}{'where':26}{'fundl us':>10}{'torch.nn':>10}{'error':>12}{'torch.nn':>12}")
    for corner in corners():
        if only in {"", corner.name}:
            mine, ratio, error, other = compared(corner, rounds)
            print(f"{corner.name:12}{corner.where:26}{mine * 1e6:>10.1f}{ratio:>10.2f}{error:>12.1e}{other:>12.1e}")


if __name__ == "__main__":
    typer.run(main)
