"""Functions written to ONNX files."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVarTuple

from fundl import __version__
from fundl._common.files import atomic_file, require_folder
from fundl._common.suggestions import with_suggestions
from fundl.interop._call import Call, call_of, call_of_apply, call_of_step
from fundl.interop.onnx._assembling import assembled
from fundl.interop.onnx._file import as_bytes
from fundl.interop.onnx._writer import Body, ExportError
from fundl.layer import Model, P, Prediction, Target
from fundl.saving import save
from fundl.training.step import S, Step, TrainState, X

Examples = TypeVarTuple("Examples")


@with_suggestions
def export(
    path: str | os.PathLike[str],
    function: Callable[[*Examples], object],
    *examples: *Examples,
    free: str | Collection[str] = (),
    results: str | Sequence[str] = "result",
) -> None:
    """Write a pure function of trees of tensors to an ONNX file, which runs without fundl and torch.

    The function is traced as by `jit`: it runs once, with tensors that have shapes, but no values. Backward passes, optimizers,
    schedules and random numbers are operations like others, so a whole training step is such a function. What of it reads
    values is not in the file: a class index that is out of range is an error in fundl, and goes unnoticed there.

    Inputs are called by the function's parameters and by their paths, ``state.model.0.weight``; outputs by ``results``,
    likewise. What the file's metadata say, see ``fundl_onnx``.

    Args:
        path: of the file, by custom in ".onnx"; it is written whole or not at all.
        function: from trees of tensors to a tree of tensors, with positional parameters.
        examples: what it is called with: shapes, dtypes and structure count, numbers do not.
        free: the parameters whose tensors may have any number of rows, of the first axis. Rows that are as many in the examples
            are as many in each call; there must be two of them at least. What the function asks of their number becomes the
            range that the file is for, which `load` checks.
        results: what the function returns is called: one name for all, or one for each part of a tuple. What is called
            "next.state" must be like the argument "state".

    Raises:
        ExportError: there is no ONNX for something that the function does; it says for what, and where.
        ImportError: onnx is not installed, ``pip install fundl[onnx]``.
        TraceError: the function is none that can be traced.
        TypeError: the examples are no trees of tensors, or do not fit the function.
        ValueError: the number of rows cannot be free; two tensors would have the same name.
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
    """Write a training step to an ONNX file, and the state to start from to a file beside it.

    The step takes ``state`` and ``batch`` and gives ``next.state`` and ``report``: who feeds each output
    ``next.state.model.0.weight`` to the input ``state.model.0.weight`` again trains. The state is a file of `save`, with the
    ending ".safetensors" in the place of the other, which `load` reads as well.

    To set the learning rate while it trains, make the optimizer `adjustable`: it is then one of the inputs, with the name
    ``state.optimizer.inner.numbers.0`` or so, which `AdjustableState.by_name` tells.

    Args:
        path: of the file, by custom in ".onnx".
        step: of `train_step`, or a function that does the same.
        state: the first one.
        batch: (x, target); where its rows are free, of two at least.
        free: "batch" for any number of rows, or () for that of the example.

    Raises:
        ExportError, ImportError, TraceError, TypeError, ValueError: as of `export`.

    The disk network, to be trained in a browser:

        from fundl.interop import onnx

        step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
        onnx.export_step("disk.onnx", step, state, (x, target))  # and disk.safetensors
    """
    call = call_of_step(step, state, batch, free)
    target = Path(path)
    if target.suffix == ".safetensors":
        raise ValueError(f"{path} is to be the step, by custom in .onnx, beside which the state is put in .safetensors")
    _write(path, call)
    save(target.with_suffix(".safetensors"), state)


@with_suggestions
def export_apply(path: str | os.PathLike[str], model: Model, x: object, *, free: str | Collection[str] = "x") -> None:
    """Write a model to an ONNX file: what `apply` does, with the parameters in the file.

    It takes ``x``, or its parts, and gives ``output``. The parameters keep their names, ``model.0.weight``.

    Args:
        path: of the file, by custom in ".onnx".
        model: with values.
        x: an input; where its rows are free, of two at least.
        free: "x" for any number of rows, or () for that of the example.

    Raises:
        ExportError, ImportError, TraceError, TypeError, ValueError: as of `export`.
    """
    _write(path, call_of_apply(model, x, free))


def _write(path: str | os.PathLike[str], call: Call) -> None:
    require_folder(path)
    body, metadata = assembled(call, __version__)
    content = as_bytes(body, metadata)
    _require_kernels(content, body)
    with atomic_file(path) as file:
        file.write(content)


def _require_kernels(content: bytes, body: Body) -> None:
    """Raise an error where onnxruntime, if it is there to be asked, has no kernel for an operation."""
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a module that says nothing of what it raises
        found = re.search(r"node with name '\w+?_(\d+)'", str(error))
        if found is None:
            raise ExportError(f"onnxruntime refuses the file: {error}") from error
        operation = body.operations[int(found[1])]
        raise ExportError(
            f"onnxruntime has no kernel for {operation.kind} of these dtypes, {operation.origin}; in float32 it has more"
        ) from error
