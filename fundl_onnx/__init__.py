"""Functions that `fundl.interop.onnx` wrote, run where there is no torch: it needs numpy and onnxruntime alone.

A whole training run, from the two files of `fundl.interop.onnx.export_step`:

    step = fundl_onnx.load("disk.onnx")
    state = step.read("disk.safetensors")
    for x, y in batches:
        outputs = step.run({**state, "batch.0": x, "batch.1": y})
        state = step.following(outputs)
        print(outputs["report.loss"])
"""

import os

from fundl_onnx._function import FORMAT as FORMAT
from fundl_onnx._function import Contents as Contents
from fundl_onnx._function import Function as Function
from fundl_onnx._function import Named as Named
from fundl_onnx._function import Size as Size
from fundl_onnx._function import require_shapes as require_shapes
from fundl_onnx._tensors import name_in_graph as name_in_graph
from fundl_onnx._tensors import read_tensors as read_tensors
from fundl_onnx._trees import Array as Array
from fundl_onnx._trees import Description as Description
from fundl_onnx._trees import Tree as Tree
from fundl_onnx._trees import described_arrays as described_arrays


def load(path: str | os.PathLike[str], *, threads: int = 1) -> Function:
    """The function in a file.

    Args:
        path: of the file.
        threads: how many compute; for small networks one is fastest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something else wrote it, or a newer fundl.
    """
    return Function(path, threads)
