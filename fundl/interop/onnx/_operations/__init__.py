"""How each operation of ATen that is left after the decompositions is written in ONNX."""

from typing import Final

from fundl.interop.onnx._operations import elementwise, indices, products, reductions, shapes
from fundl.interop.onnx._writer import Rules

_FAMILIES: Final = (elementwise, indices, products, reductions, shapes)
RULES: Final[Rules] = {key: rule for family in _FAMILIES for key, rule in family.TABLE.items()}
