"""Tensors that say they are on a GPU, where there is none: shapes, dtypes and devices, and no numbers.

Whatever asks for a number raises an error, as there is none; `watched` also tells of what makes a program wait for the device
without asking: copies between devices, and shapes that depend on numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import attrs
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from typing_extensions import override

from fundl import tree
from fundl._compiling.torch_private import Operation, mode

T = TypeVar("T")

DEVICE: Final = torch.device("cuda", 0)

_WAITS: Final = {"torch.bincount", "torch.equal", "torch.histc"}  # beside those that torch itself says it of


@attrs.frozen
class Watched:
    """The operations that ran, in order, and those of them for which a program waits for the device."""

    operations: list[str] = attrs.field(factory=list)
    waits: list[str] = attrs.field(factory=list)

    def see(self, operation: Operation, arguments: Sequence[object], run: Callable[[], object]) -> object:
        """Run an operation, and note it."""
        name = operation.name
        self.operations.append(name)
        devices = _devices(arguments)
        found = run()
        devices |= _devices(found)
        is_copy = len(devices) > 1 and name != "torch.lift_fresh"
        needs_values = operation.needs_values and (name != "torch.index" or _has_booleans(arguments[1]))
        if "cuda" in devices and (is_copy or needs_values or name in _WAITS):
            self.waits.append(name)
        return found


def _devices(values: object) -> set[str]:
    """Where the tensors among some values are, those that are a number on the host but for one."""
    if isinstance(values, Tensor):
        return set() if values.device.type == "cpu" and values.ndim == 0 else {values.device.type}
    return set[str]().union(*map(_devices, values)) if isinstance(values, tuple | list) else set()


def _has_booleans(indices: object) -> bool:
    """Whether it is by booleans that a tensor is indexed: then the shape of what comes depends on them."""
    return isinstance(indices, tuple | list) and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)


class _WithoutGuards(TorchFunctionMode):
    """Goes round the methods for which a torch for CPUs alone looks for the device, though it is asked for shapes alone."""

    @override
    def __torch_function__(  # type: ignore[explicit-any]  # of the function's arguments
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.device == DEVICE:
            match getattr(func, "__name__", ""):
                case "__invert__":
                    return torch.bitwise_not(first)
                case "copy_" if _devices(args) == {"cuda"}:
                    return first
                case "contiguous":
                    return first if first.is_contiguous() else first.clone(memory_format=torch.contiguous_format)
                case "__getitem__" if isinstance(args[1], Tensor):
                    return torch.ops.aten.index.Tensor(first, [args[1]])
                case "__getitem__" if not _devices(args[1]):
                    return _part(first, args[1])
                case _:
                    pass
        return func(*args, **(kwargs or {}))


def _part(x: Tensor, index: object) -> Tensor:
    """What indexing by numbers and slices gives."""
    with no_dispatch():
        found = torch.empty_strided(x.shape, x.stride(), device="meta")[index]  # type: ignore[index]  # as it was written
    return torch.as_strided(x, found.shape, found.stride(), x.storage_offset() + found.storage_offset())


@contextmanager
def watched() -> Iterator[Watched]:
    """Within it, tensors made on `DEVICE` are fake, and what runs is noted."""
    watch = Watched()
    with FakeTensorMode(allow_non_fake_inputs=False), mode(watch.see), _WithoutGuards():
        yield watch


def on_device(values: T) -> T:
    """A tree with tensors of the same kind on the device, within `watched`."""
    return tree.map(lambda leaf: torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=DEVICE), values)
