"""Functions of fundl as ONNX files: a model, or a whole training step, that runs, and trains, without torch.

`export_step` writes a step with its first state, `export_apply` a model, `export` any pure function of trees; `load` runs what
they wrote by onnxruntime. Where there is no torch, `fundl_onnx.load` does, and in a browser onnxruntime-web.

The extra `onnx` brings onnx, which writes, and onnxruntime, which runs.
"""

from fundl.interop.onnx._writer import ExportError as ExportError
from fundl.interop.onnx.exporting import export as export
from fundl.interop.onnx.exporting import export_apply as export_apply
from fundl.interop.onnx.exporting import export_step as export_step
from fundl.interop.onnx.loading import Loaded as Loaded
from fundl.interop.onnx.loading import load as load
