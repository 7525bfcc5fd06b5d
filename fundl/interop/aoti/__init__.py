"""Functions of fundl as AOTInductor packages: a model, or a whole training step, that runs, and trains, in a program in C++.

`export_step` writes a step with its first state, `export_apply` a model, `export` any pure function of trees. A program in C++
opens the package by ``torch::inductor::AOTIModelPackageLoader``, which comes with torch, as `load` does in Python.

What is compiled is what `jit` compiles, in AOTInductor's container. It is for processors like this one, and for the version of
torch that wrote it.
"""

from fundl.interop.aoti.exporting import ExportError as ExportError
from fundl.interop.aoti.exporting import export as export
from fundl.interop.aoti.exporting import export_apply as export_apply
from fundl.interop.aoti.exporting import export_step as export_step
from fundl.interop.aoti.loading import PackagedFunction as PackagedFunction
from fundl.interop.aoti.loading import load as load
