"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, cast, final, overload

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl._compiling import cache, inductor, replays, torch_private
from fundl._compiling.cache_keys import CacheKey
from fundl._compiling.calls import Arguments, Call, CallWriter
from fundl._compiling.compiled_function import CompiledFunction
from fundl._compiling.donation import LastReturned
from fundl._compiling.overwriting import CallInterface, CallProgram, donated_arguments, write_back
from fundl._compiling.programs import Programs
from fundl._compiling.tracing import trace
from fundl._compiling.trees import Flat, replace

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")


@final
class Compiled(CompiledFunction[CallInterface, inductor.Run], Generic[P, R]):
    """A compiled function; made by `jit`. It is called as the function that it is of.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[P, R], static: Sequence[str], donate: Sequence[str], max_traces: int | None) -> None:
        functools.update_wrapper(self, function)
        name, parameters = _name(function), _parameters(function)
        super().__init__(function, name, parameters, max_traces, static=sorted(static), donate=tuple(donate))
        self.function = function
        for option, names in self._options.items():
            for unknown in {*names} - {*parameters}:
                raise ValueError(f"{option}={unknown!r} is not a parameter of {name}{inspect.signature(function)}")
        if both := {*static} & {*donate}:
            raise ValueError(f"{min(both)!r} is in static and in donate: what is no tree has no memory to be written over")
        self._returned = {name: LastReturned() for name in donate}
        self._shared = Compiled(function, static, (), max_traces) if donate else None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns, computed by its compiled program."""
        return self._call(args, kwargs)  # type: ignore[return-value]  # a compiled program returns what the function does

    @override
    def __repr__(self) -> str:
        return f"<compiled {self._name}, {self._programs}>"

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: "Compiled[Concatenate[T, Q], R]", instance: T, owner: type | None = None, /) -> Callable[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> object:
        """The compiled function as a method: its first argument is the instance."""
        return self if instance is None else types.MethodType(self, instance)

    @override
    def _compile(self, key: CacheKey, arguments: Arguments, flat: Flat) -> tuple[CallInterface, inductor.Run, Path, bool]:
        def function(leaves: Sequence[Tensor]) -> object:
            with no_grad():
                return self._run_as_it_is(*cast("Arguments", replace(arguments, iter(leaves))))  # of the same form

        examples = [*map(torch_private.as_normal, flat.leaves)]
        traced = trace(function, examples)
        inputs, together = [*examples, *traced.constants], bool(traced.graph.groups)
        if donated := donated_arguments(self._name, self._options["donate"], traced, key, flat):
            graph, interface, slots = write_back(traced, donated, len(inputs))
            interface = attrs.evolve(interface, together=together)
            run, library, cached = cache.compiled(graph, inputs + slots)
            return interface, _replayed(run, key, interface), library, cached
        interface = CallInterface(
            constants=traced.constants, result=traced.result, outputs=traced.graph.outputs, together=together
        )
        return interface, *cache.compiled(traced.graph, inputs)

    @override
    def _write_call(self, arguments: Arguments, flat: Flat, key: CacheKey, program: CallProgram) -> Call:
        return CallWriter(arguments, flat, key, program, returned=self._returned, shared=self._shared).write()

    @override
    def _by_role(self) -> dict[str, Programs[CallInterface, inductor.Run]]:
        """Those for donated trees that are not written over are "shared"."""
        return super()._by_role() | ({"shared": self._shared._programs} if self._shared else {})

    @override
    def _loaded(self, key: CacheKey, interface: CallInterface, library: Path) -> inductor.Run:
        run = cache.load(library, [*key.devices, *(constant.device for constant in interface.constants)])
        return _replayed(run, key, interface)


def _replayed(run: inductor.Run, key: CacheKey, interface: CallInterface) -> inductor.Run:
    """A program that writes over its state and returns nothing, as a graph of a GPU's."""
    if not interface.slots or interface.together:
        return run
    given, constants, slots = len(key.leaves), len(interface.constants), len(interface.slots)
    fixed = [*(number for one in interface.donated for number in one.leaves), *range(given, given + constants)]
    constant_devices = [constant.device for constant in interface.constants]
    devices = [*key.devices, *constant_devices, *(device for _, _, device in interface.slots)]
    return replays.replayed(run, devices, fixed, range(given + constants, given + constants + slots))


def _name(function: Callable[..., object]) -> str:  # type: ignore[explicit-any]  # of any arguments
    return str(getattr(function, "__qualname__", repr(function)))


def _parameters(function: Callable[..., object]) -> list[str]:  # type: ignore[explicit-any]  # of any arguments
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return []
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [parameter.name for parameter in parameters if parameter.kind in positional]


@with_suggestions
def jit(
    function: Callable[P, R],
    *,
    static: str | Sequence[str] = (),
    donate: str | Sequence[str] = (),
    max_traces: int | None = None,
) -> Compiled[P, R]:
    """Compile a pure function of trees.

    The function is run once for each kind of arguments, on stand-ins for their tensors, and all that it does with tensors is
    compiled as one graph. The compiled function gives the same results, and costs next to nothing beside the arithmetic. They
    have the same bits where the same kernels compute them (LSTMs, large linear layers) or nothing is rounded (integers, random
    bits). Else they differ by rounding, since sums are added up in another order: for every layer, loss and optimizer by 5e-6
    of a tensor's largest number at most in float32, and 1e-13 in float64.

    Kinds of arguments differ in the trees' structure (with all static fields), and in the tensors' shapes, strides, dtypes and
    devices, and in what torch is set to (the number of threads, the default dtype and device, autocast, deterministic
    algorithms). A last batch that is smaller than the others is compiled for once more, not each time it comes.

    Args:
        function: of trees of tensors (models, states of optimizers, batches, keys), to such a tree. It must be pure: what
            else it does, it does once per kind of arguments.
        static: the names of arguments that are no trees (functions, numbers, flags): hashable, and a part of the kind.
        donate: the names of arguments that are used up: the part of the result that is a tree like it is written over the
            memory of each, which saves allocating and copying. Whoever uses it again, or a tensor of it that he held on to,
            gets a `DonatedError`; only views that were taken of its tensors before go unnoticed, and show the new numbers. A
            tree whose tensors share memory stays as it is, and is not written over.
        max_traces: how often it may be compiled, at most; another kind of arguments is then an error that says what is new.

    Raises:
        TraceError: the function asks for the value of a tensor, writes into its arguments, keeps a tensor, or draws random
            numbers other than from a key; the message names the line.
        RetraceError: see `max_traces`.

    A compiled training step, with the loop around it as it was:

        step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
        for batch in batches:
            state, report = step(state, batch)
        print(step.traces)

    Compiling takes seconds, once: a terminal shows about how many. What is compiled is kept on disk, in the folder that the
    environment variable FUNDL_CACHE_DIR names (by default ~/.cache/fundl), and found by the next process. If that folder
    cannot be written, or others can write to it, a warning says so, and each process compiles anew.

    Numbers below the normal ones (about 1e-38 in float32, 1e-308 in float64) count as 0 in compiled code, as in JAX's: for
    those, many processors take a hundred times as long, and moments of weights that get no gradient decay to them. The
    processor is set back after each call. Kernels of the BLAS that run on several threads may keep such numbers.

    Other threads of Python go on during a call that takes long.
    """
    return Compiled(function, _names("static", static), _names("donate", donate), max_traces)


def _names(option: str, given: object) -> tuple[str, ...]:
    """The names in an option, which may be one."""
    if isinstance(given, str):
        return (given,)
    names = tuple(given) if isinstance(given, Collection) else (given,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f'jit(..., {option}=...) names arguments of the function, such as {option}="state", not {given!r}')
    return names
