# The part of onnx that is used here; its own types lead to protobuf's, which are not complete.
from collections.abc import Sequence

from onnx import checker as checker
from onnx import helper as helper
from onnx import numpy_helper as numpy_helper

class TensorProto:
    name: str
    dims: Sequence[int]

class NodeProto:
    name: str
    op_type: str
    input: Sequence[str]
    output: Sequence[str]

class ValueInfoProto:
    name: str

class GraphProto:
    node: Sequence[NodeProto]
    input: Sequence[ValueInfoProto]
    output: Sequence[ValueInfoProto]
    initializer: Sequence[TensorProto]

class OperatorSetIdProto:
    domain: str
    version: int

class ModelProto:
    ir_version: int
    opset_import: Sequence[OperatorSetIdProto]
    graph: GraphProto
    def SerializeToString(self) -> bytes: ...  # noqa: N802

def load(f: str) -> ModelProto: ...
