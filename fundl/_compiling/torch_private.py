"""The private parts of torch that calls of compiled functions and tracing need. `OLDEST` to `NEWEST` have them; tests watch it.

Modules that take long to import are imported when they are used. Where a torch lacks something, functions run as they are.
"""

import functools
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import attrs
import torch
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.utils._python_dispatch import TorchDispatchMode


# --- What must be there -------------------------------------------------------------------------------------------------

CALLED: Final = (
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._dynamo.guards.TensorGuards",
    "torch._C._is_any_autocast_enabled",
    "torch._C._disabled_torch_dispatch_impl",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._aoti.AOTIModelContainerRunnerCpu.run",  # runs what is compiled, also where nothing more is
    "torch._is_functional_tensor",
    "torch.overrides._get_current_function_mode_stack",
    "torch.utils._device.DeviceContext",
)
"""What a compiled function needs when it is called; to look for it imports nothing."""

NAMES: Final = (
    *CALLED,
    "torch._ops.OpOverload",
    "torch.fx.experimental.proxy_tensor.make_fx",
    "torch.fx.graph_module._loader.eval_cache",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._disable_current_modes",
)
"""What is used here and in `graphs`; the modules that compile say the same of themselves."""

OLDEST: Final = (2, 11)
NEWEST: Final = (2, 14)
"""The versions of torch that the tests are run with, and all between them."""


class UnknownTorchError(ImportError):
    """This torch lacks what compiling needs; the message says what, and which versions have it."""


def require_known(names: Sequence[str]) -> None:
    """Raise an error that says which of some names torch lacks, if it lacks any; warn once of a torch that is too new.

    Raises:
        UnknownTorchError: it lacks some.
    """
    if missing := _missing(tuple(names)):
        raise UnknownTorchError(
            f"fundl compiles with torch {_known_versions()}, and torch {torch.__version__} lacks {', '.join(missing)}: use one"
            " of those versions, or a newer fundl"
        )
    _warn_of_a_newer(str(torch.__version__))


def is_known(function: str) -> bool:
    """Whether torch has what a call of a compiled function needs; if not, a warning says that the function runs as it is."""
    try:
        require_known(CALLED)
    except UnknownTorchError as error:
        _warn_of_what_is_missing(function, str(error))
        return False
    return True


@functools.cache
def _warn_of_what_is_missing(function: str, error: str) -> None:
    warnings.warn(f"{function} is not compiled, and runs as it is: {error}", RuntimeWarning, stacklevel=6)


@functools.cache
def _warn_of_a_newer(version: str) -> None:
    if tuple(map(int, re.findall(r"\d+", version)[:2])) > NEWEST:
        warnings.warn(
            f"fundl is tested with torch {_known_versions()}, and this is torch {version}: what is compiled may be wrong;"
            " compare it with what runs as it is, or update fundl",
            RuntimeWarning,
            stacklevel=7,
        )


def _known_versions() -> str:
    return " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))


@functools.cache
def _missing(names: tuple[str, ...]) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch deprecates in itself
        return [name for name in names if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


# --- Tensors ------------------------------------------------------------------------------------------------------------


# Of a torch that lacks one of these, the function in its place is not called.

mode_count: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", int)
"""How many modes (tracing, fake tensors, counting of operations) see the operations of this thread."""

function_mode_count: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", int)
"""How many modes see the functions of torch that this thread calls; a default device is one of them."""

is_any_autocast: Callable[[], int] = getattr(torch._C, "_is_any_autocast_enabled", int)
"""Whether operations cast what they are given, on a device of any type."""


def without_modes() -> AbstractContextManager[None]:
    """In it, no mode sees the operations of this thread."""
    from torch.utils._python_dispatch import _disable_current_modes

    return cast("AbstractContextManager[None]", _disable_current_modes())


def is_watched() -> bool:
    """Whether a mode other than a default device sees what this thread does: then its operations must run one by one."""
    if mode_count() or not function_mode_count():
        return bool(mode_count())
    from torch.utils._device import DeviceContext

    modes: list[object] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # it has no types
    return not all(isinstance(mode, DeviceContext) for mode in modes)


def guard(tensors: Sequence[Tensor], *, any_rows: bool = False) -> Callable[[*tuple[Tensor, ...]], bool]:
    """A function that tells, in C++, whether tensors are like these: class, dtype, device, shape, strides; none twice.

    Args:
        tensors: as they shall be.
        any_rows: whether the sizes of their first axes do not matter.
    """
    sizes: list[list[int | None]] = [[*tensor.shape] for tensor in tensors]
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[[None, *size[1:]] if any_rows else size for size in sizes],  # type: ignore[misc]  # the stub says one size for each
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],  # type: ignore[misc]  # likewise
    )
    return guards.check


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of numbers in memory: not fake, on the meta device, sparse, or of a function transform."""
    return (
        type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
        and not tensor.is_meta
        and tensor.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


def resolved(tensor: Tensor) -> Tensor:
    """A tensor with its numbers in memory, where compilers look for them (https://github.com/pytorch/pytorch/issues/145093).

    Others have still to be negated or conjugated, or to be filled with zeros.
    """
    return tensor.clone() if tensor._is_zerotensor() else tensor.resolve_conj().resolve_neg()


def as_normal(tensor: Tensor) -> Tensor:
    """A tensor that may be written to in any mode: a copy of one that was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def owns_its_memory(tensor: Tensor) -> bool:
    """Whether a tensor is all that is in its memory, each number once."""
    overlapping = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return not overlapping and tensor.untyped_storage().nbytes() == tensor.nbytes


# --- Operations ---------------------------------------------------------------------------------------------------------


_Overload: TypeAlias = "OpOverload[..., object]"  # type: ignore[explicit-any]  # of any arguments


@attrs.frozen
class Operation:
    """What an operation of ATen says of itself."""

    overload: _Overload

    @property
    def name(self) -> str:
        """As the program might have called it."""
        return f"torch.{str(self.overload).removeprefix('aten.').split('.')[0]}"

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers; attention, which only may, does not."""
        return torch.Tag.nondeterministic_seeded in self.overload.tags and "attention" not in self.name

    @property
    def needs_values(self) -> bool:
        """Whether its result, or the shape of that, depends on the values of tensors."""
        tags = self.overload.tags
        return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags

    def written(self, arguments: Sequence[object]) -> Iterator[Tensor]:
        """The arguments that it writes to."""
        if self.overload._schema.is_mutable:
            for argument, value in zip(self.overload._schema.arguments, arguments, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    parts = value if isinstance(value, tuple | list) else (value,)
                    yield from (part for part in parts if isinstance(part, Tensor))


def is_unknown(result: object) -> bool:
    """Whether a result, or a size of it, is a symbol for a number that depends on the values of tensors."""
    sizes = (result, *result.shape) if isinstance(result, Tensor) else (result,)
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)


_Watcher = Callable[[Operation, Sequence[object], Callable[[], object]], object]


def mode(watcher: _Watcher) -> "TorchDispatchMode":
    """A mode in which a function sees each operation, its arguments in their order, and what runs it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
        @override
        def __torch_dispatch__(
            self, func: _Overload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
        ) -> object:
            named = kwargs or {}
            order = [*args, *(named.get(argument.name) for argument in func._schema.arguments[len(args) :])]
            return watcher(Operation(func), order, lambda: func(*args, **named))

    return Mode()  # type: ignore[no-untyped-call]  # likewise
