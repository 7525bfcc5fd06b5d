"""For operations of ATen that ONNX lacks, formulas of others that it has, each as short as the operation's definition.

They go from ATen to ATen, so they are checked against ATen's kernels without ONNX.
"""

from typing import Final

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions import attention, convolution, lists, matrices, maxima, normalization, single

_FAMILIES: Final = (attention, convolution, lists, matrices, maxima, normalization, single)
TABLE: Final[Decompositions] = {key: rule for family in _FAMILIES for key, rule in family.TABLE.items()}
