"""Any module as a layer: its tensors are the layer's, and its own forward runs, which torch differentiates."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Final, NamedTuple, cast, final
from weakref import WeakKeyDictionary

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from typing_extensions import override

from fundl import tree
from fundl._common.modes import is_untraced
from fundl.derivatives.function_layer import FunctionLayer
from fundl.interop.torch_nn.conversion import ConversionError
from fundl.tree import BUFFER, Record, describe


@final
@attrs.frozen(eq=False)
class ModuleTensors(Record):
    """The tensors of a module that `as_layer` made a layer of, by the names that the module has for them.

    Args:
        parameters: what is trained.
        buffers: what is not: the module's buffers, and its parameters with requires_grad=False.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor] = attrs.field(factory=dict, metadata=BUFFER)


def as_layer(module: nn.Module) -> FunctionLayer[ModuleTensors, Tensor, Tensor]:
    """Any module of torch as a layer, with its own forward, and copies of its parameters and buffers.

    It is for what `from_torch` does not know: one's own modules, and those of libraries. It computes what the module computes
    in evaluation. An input that is a tuple is spread: module(*x). torch finds its backward; `FunctionLayer` says at what cost.

        layer.params.parameters["layer1.0.conv1.weight"], layer.params.buffers["bn1.running_mean"]

    Buffers, and parameters with requires_grad=False, are not trained. To have the module back, trained:
    ``module.load_state_dict({**layer.params.parameters, **layer.params.buffers}, strict=False)``.

    What a module does in training beside that is no function of its inputs, and is left out: dropout drops nothing, and batch
    norm has the running statistics, which stay as they are. With ``track_running_stats=False`` it takes those of the batch.
    `from_torch` makes layers of such modules that are trained with keys and statistics.

    Args:
        module: with values; its forward is pure but for what it does in training, takes tensors, and gives tensors, or tuples
            or dicts of them.

    Returns:
        The layer; ``inplace`` of its parts is left out. A type checker takes its input and output to be tensors.

    Raises:
        ConversionError: the module has no parameters yet, or cannot be copied; or, as it is first applied, it writes over what
            it is given, or draws random numbers.
        TypeError: it is no module; or it gives something else than tensors, as it is applied.

    >>> import torch
    >>> from torch import nn
    >>> from fundl import apply, vjp
    >>> from fundl.interop import torch_nn
    >>> class Norm(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = nn.Parameter(torch.tensor(2.0))
    ...     def forward(self, x):
    ...         return self.scale * x / x.norm()
    >>> layer = torch_nn.as_layer(Norm())
    >>> apply(layer, torch.tensor([3.0, 4.0]))
    tensor([1.2000, 1.6000])
    >>> grads, _ = vjp(layer, torch.tensor([3.0, 4.0]), torch.ones(2))
    >>> grads.params.parameters
    {'scale': tensor(1.4000)}
    """
    _require_module(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ConversionError(f"{name} of the module has no values yet: call the module on an input first")
    parameters, buffers = dict[str, Tensor](), dict[str, Tensor]()
    for name, parameter in module.named_parameters():
        (parameters if parameter.requires_grad else buffers)[name] = parameter.detach().clone()
    for name, buffer in module.named_buffers():
        buffers[name] = buffer.detach().clone()
    function = cast("Callable[[ModuleTensors, Tensor], Tensor]", ModuleFunction(module))  # of tensors, as far as is known
    return FunctionLayer[ModuleTensors, Tensor, Tensor](ModuleTensors(parameters, buffers), function)


def _require_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        write = f": write as_layer({module.__name__}(...))" if isinstance(module, type) else ""
        raise TypeError(f"as_layer takes a module of torch.nn, not {describe(module)}{write}")


# --- A module as a pure function ---------------------------------------------------------------------------------------

_LOCKS: "Final[WeakKeyDictionary[nn.Module, threading.RLock]]" = WeakKeyDictionary()
_PROVEN: "Final[WeakKeyDictionary[nn.Module, bool]]" = WeakKeyDictionary()


@final
class ModuleFunction:
    """What a module computes of tensors in the place of its own; files cannot tell of it.

    Two are equal if they are made of the same parts, and so compute the same of the same tensors.
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy the module; its tensors take no memory in the copy."""
        self.module: nn.Module = _without_values(module)
        self.__wrapped__: tuple[tuple[str, type[nn.Module], object], ...] = tuple(
            (name, type(part), _settings(part)) for name, part in self.module.named_modules()
        )
        """What it is known by."""

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleFunction) and self.__wrapped__ == other.__wrapped__

    @override
    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __call__(self, params: ModuleTensors, x: object) -> object:
        """The module's output; one call at a time, since each puts the tensors into the module, and takes them out again."""
        with _LOCKS.setdefault(self.module, threading.RLock()):
            if self.module in _PROVEN or not all(map(is_untraced, tree.leaves((params, x)))):
                return self._run(params, x)
            with torch.inference_mode(False), torch.no_grad():  # where tensors count how often they are written to
                return self._proven(params, x)

    def _run(self, params: ModuleTensors, x: object) -> object:
        inputs = x if type(x) is tuple else (x,)
        output: object = torch.func.functional_call(self.module, {**params.parameters, **params.buffers}, inputs)
        return output

    def _proven(self, params: ModuleTensors, x: object) -> object:
        """The first run, of copies: it tells whether the module is a pure function."""
        given = tree.map(torch.clone, _Given(params, x))
        tensors = dict(zip(tree.paths(given), tree.leaves(given), strict=True))
        state, versions = torch.get_rng_state(), {name: tensor._version for name, tensor in tensors.items()}
        output = self._run(given.params, given.x)
        if not torch.equal(state, torch.get_rng_state()):
            torch.set_rng_state(state)
            raise ConversionError(
                f"{self!r} draws random numbers from torch's hidden state, in evaluation too, but a layer gives the same output"
                " each time: give it the numbers as an input, or take them from fundl.random, by a key that is one"
            )
        if written := [
            name.removeprefix(".params").removeprefix(".")
            for name, tensor in tensors.items()
            if tensor._version != versions[name]
        ]:
            raise ConversionError(
                f"{self!r} writes over {', '.join(written)}, in evaluation too, but a layer changes nothing that it is given:"
                " have its forward work out of place, and give what it counts or remembers as an output"
            )
        _PROVEN[self.module] = True
        return output

    @property
    def __name__(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__

    @override
    def __repr__(self) -> str:
        return self.__name__


class _Given(NamedTuple):
    """What a module is given."""

    params: ModuleTensors
    x: object


def _without_values(module: nn.Module) -> nn.Module:
    """A copy of a module, in evaluation, whose tensors take no memory."""
    copies: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = tensor.detach().to("meta")
        copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    try:
        copied: nn.Module = copy.deepcopy(module, copies)
    except Exception as error:  # whatever its parts raise
        raise ConversionError(
            f"the module ({type(module).__name__}) cannot be copied, {error}: an old weight_norm or spectral_norm is removed by"
            " torch.nn.utils.remove_weight_norm, remove_spectral_norm; those of torch.nn.utils.parametrizations can stay"
        ) from error
    for part in copied.modules():
        if getattr(part, "inplace", False) is True:  # which changes no output, but perhaps an input
            part.inplace = False  # type: ignore[assignment]  # a module may have any attribute
    return copied.eval()


# --- What a module is made of ------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Only:
    """Something that is equal to nothing else: nobody knows what it does."""

    value: object


def _settings(part: nn.Module) -> tuple[tuple[str, object], ...]:
    """What a part has beside its tensors and parts."""
    return tuple((name, _plain(value)) for name, value in vars(part).items() if name not in _TENSORS)


_TENSORS: Final = frozenset({"_parameters", "_buffers", "_modules"})
_ATOMS: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_FUNCTIONS: Final = (FunctionType, BuiltinFunctionType, type)


def _plain(value: object) -> object:
    """A setting as something that is equal to another only if both mean the same."""
    if isinstance(value, _FUNCTIONS):
        return value
    if type(value) in _ATOMS:
        return type(value), value
    if isinstance(value, tuple | list):
        return (type(value), *map(_plain, value))
    if isinstance(value, set | frozenset) and all(type(one) is str for one in value):
        return (type(value), *sorted(map(str, value)))
    if isinstance(value, Mapping):
        return (type(value), *_items(value))
    return _Only(value)


def _items(values: Mapping[object, object]) -> Iterator[object]:
    for key, value in values.items():
        yield _plain(key)
        yield _plain(value)
