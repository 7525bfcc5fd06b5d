"""Functions written to AOTInductor packages."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVarTuple

import torch
from torch import Tensor

from fundl import __version__
from fundl._common.files import atomic_file, require_folder
from fundl._common.suggestions import with_suggestions
from fundl._compiling import exports, inductor, torch_private
from fundl._compiling.graphs import Graph
from fundl._compiling.trees import Leaf, flatten, replace
from fundl.interop._call import Call, call_of, call_of_apply, call_of_step, free_axes
from fundl.interop._description import Value, contents, input_names, same_name, value_of
from fundl.interop.aoti._torch import FORMAT, as_input, packaged, require_known
from fundl.layer import Model, P, Prediction, Target
from fundl.saving import save
from fundl.training.step import S, Step, TrainState, X
from fundl_onnx import name_in_graph

if TYPE_CHECKING:
    from torch.fx import GraphModule

Examples = TypeVarTuple("Examples")
_IN_TORCH: Final = {"aten", "prims", "mkldnn", "onednn", "quantized"}
"""The namespaces of operations that a program in C++ has."""


class ExportError(TypeError):
    """A function cannot become a package; the message says which operation is why, of which layer, at which line."""


ExportError.__module__ = "fundl.interop.aoti"


@with_suggestions
def export(
    path: str | os.PathLike[str],
    function: Callable[[*Examples], object],
    *examples: *Examples,
    free: str | Collection[str] = (),
    results: str | Sequence[str] = "result",
) -> None:
    """Compile a pure function of trees of tensors to an AOTInductor package, which runs without Python.

    The function is traced as by `jit`: it runs once, with tensors that have shapes, but no values. It is compiled for the CPU,
    with as many threads as ``torch.get_num_threads()``. Inputs are called by the function's parameters and by their paths,
    ``state.model.0.weight``; outputs by ``results``, likewise.

    A package's function takes a list of tensors, and gives one. The package's metadata say what they are: ``fundl.inputs``
    and ``fundl.outputs`` are their names in order, a line each, ``fundl.function`` the trees, as in ONNX files: see
    ``fundl_onnx.Contents``. Inputs have to be contiguous, and outputs are. A program that runs with the environment variable
    AOTI_RUNTIME_CHECK_INPUTS=1 is told what is wrong with what it gives.

    Args:
        path: of the file, which ends in ".pt2"; it is written whole or not at all.
        function: from trees of tensors to a tree of tensors, with positional parameters.
        examples: what it is called with: shapes, dtypes and structure count, numbers do not.
        free: the parameters whose tensors may have any number of rows, of the first axis. Rows that are as many in the examples
            are as many in each call; there must be two of them at least. What the function asks of their number becomes the
            range that the package is for, which `load` checks.
        results: what the function returns is called: one name for all, or one for each part of a tuple. What is called
            "next.state" must be like the argument "state".

    Raises:
        CompilerError: there is no compiler for C++ on this machine, or it or torch's own cannot compile the function.
        ExportError: the function calls an operation that is none of torch's own; it says which, and where.
        TraceError: the function is none that can be traced.
        TypeError: the examples are no trees of tensors, or do not fit the function.
        UnknownTorchError: this torch lacks what packages need.
        ValueError: the number of rows cannot be free; two tensors would have the same name; the path has another ending.
    """
    _write(path, call_of(function, examples, free, results))


@with_suggestions
def export_step(
    path: str | os.PathLike[str],
    step: Step[P, S, X, Target, Prediction],
    state: TrainState[P, S],
    batch: tuple[X, Target],
    *,
    free: str | Collection[str] = "batch",
) -> None:
    """Compile a training step to an AOTInductor package, and write the state to start from to a file beside it.

    The step takes ``state`` and ``batch`` and gives ``next.state`` and ``report``: who gives each output
    ``next.state.model.0.weight`` for the input ``state.model.0.weight`` again trains. The state is a file of `save`, with the
    ending ".safetensors" in the place of the other, which `load` of fundl reads as well.

    Args:
        path: of the file, which ends in ".pt2".
        step: of `train_step`, or a function that does the same.
        state: the first one.
        batch: (x, target); where its rows are free, of two at least.
        free: "batch" for any number of rows, or () for that of the example, which makes small networks quicker.

    Raises:
        CompilerError, ExportError, TraceError, TypeError, UnknownTorchError, ValueError: as of `export`.

    The disk network, to be trained in C++:

        from fundl.interop import aoti

        step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
        aoti.export_step("disk.pt2", step, state, (x, target))  # and disk.safetensors
    """
    _write(path, call_of_step(step, state, batch, free))
    save(Path(path).with_suffix(".safetensors"), state)


@with_suggestions
def export_apply(path: str | os.PathLike[str], model: Model, x: object, *, free: str | Collection[str] = "x") -> None:
    """Compile what `apply` does to an AOTInductor package, with the parameters in it.

    It takes ``x``, or its parts, and gives ``output``.

    Args:
        path: of the file, which ends in ".pt2".
        model: with values.
        x: an input; where its rows are free, of two at least.
        free: "x" for any number of rows, or () for that of the example.

    Raises:
        CompilerError, ExportError, TraceError, TypeError, UnknownTorchError, ValueError: as of `export`.
    """
    _write(path, call_of_apply(model, x, free))


def _write(path: str | os.PathLike[str], call: Call) -> None:
    if Path(path).suffix != ".pt2":
        raise ValueError(f"{path} is to be a package, which torch opens if it ends in .pt2")
    require_folder(path)
    require_known()
    with TemporaryDirectory() as place:
        content = packaged(Path(place), _compiled(call, Path(place)))
    with atomic_file(path) as file:
        file.write(content)


def _compiled(call: Call, folder: Path) -> dict[str, str]:
    """Compile a function to the files of a package in a folder; what they are to say of it."""
    leaves, paths, owners = call.leaves()
    names = input_names(paths)
    held = {number: as_input(leaf) for number, leaf in enumerate(leaves) if owners[number].inside}
    function = _Flat(call, {number: name for number, name in enumerate(names) if number not in held})
    with exports.followed(function, leaves, free_axes(leaves, owners)) as graph:
        _require_of_torch(graph.module)
        inputs = [value_of(name, fake) for name, fake in zip(names, graph.fakes, strict=True)]
        inductor.compile_package(Graph(graph.module), graph.fakes, folder, held)
        try:
            sizes = graph.sizes()
        except exports.SizeError as error:
            raise call.not_free(error) from error
    described = contents(call.arguments, inputs, function.parts, function.values, same=function.same, sizes=sizes)
    return {
        "fundl.format": FORMAT,
        "fundl.version": __version__,
        "fundl.function": json.dumps(described),
        "fundl.inputs": "\n".join(function.given.values()),
        "fundl.outputs": "\n".join(function.outputs),
    }


class _Flat:
    """A function from a list of tensors to a list of tensors; what these are is known once it has run.

    Args:
        call: of the function of trees.
        given: the names of those of the tensors that the package does not hold, by number.
    """

    def __init__(self, call: Call, given: Mapping[int, str]) -> None:
        self.given = given
        self.parts: list[tuple[str, object]] = []
        self.values: list[list[Value]] = []
        self.same: dict[str, str] = {}
        self.outputs: list[str] = []
        self._call = call

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        parts = self._call.parts(self._call.of_leaves(tensors))
        flats = [flatten(part, name, constants=True) for name, part in parts]
        leaves = [(name_in_graph(path), leaf) for flat in flats for path, leaf in zip(flat.paths, flat.leaves, strict=True)]
        inputs = {id(tensors[number]): name for number, name in self.given.items()}
        hands_on = all(id(leaf) in inputs for _, leaf in leaves)  # a graph must have an output
        computed: dict[str, Tensor] = {}
        for name, leaf in leaves:
            if name in computed or name in self.same:
                raise same_name(name)
            if id(leaf) in inputs and not hands_on:
                self.same[name] = inputs[id(leaf)]
            else:
                computed[name] = _of_its_own(leaf, [*tensors, *computed.values()])
        if not computed:
            raise TypeError("an exported function returns a tensor at least")
        self.outputs = [*computed]
        values = iter([value_of(name, leaf) for name, leaf in leaves])
        self.values = [[next(values) for _ in flat.leaves] for flat in flats]
        empty = [replace(part, (Leaf("output", 0) for _ in flat.leaves)) for (_, part), flat in zip(parts, flats, strict=True)]
        self.parts = [*zip(self._call.results, empty, strict=True)]
        return [*computed.values()]


def _of_its_own(tensor: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A contiguous tensor that is none of others, and no constant."""
    if torch_private.is_plain(tensor) or any(tensor is other for other in others):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def _require_of_torch(module: "GraphModule") -> None:
    """Raise an error unless all operations are ones that torch has without Python."""
    for node in module.graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in _IN_TORCH:
            raise ExportError(
                f"a program in C++ lacks {target.namespace}::{target._opname}, {exports.origin(node)}: an exported function is"
                " made of torch's own operations, and exchanges nothing with other processes"
            )
