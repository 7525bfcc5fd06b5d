"""Graphs as bytes of an ONNX file, checked."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fundl.interop._description import Value
from fundl.interop.onnx._writer import Attribute, Body, ExportError, Operation, element

if TYPE_CHECKING:
    import onnx

OPSET: Final = 18
IR: Final = 10
"""The versions of ONNX that are written: what runtimes in browsers and on telephones read as well."""

_LARGEST: Final = 2**31 - 2**20  # bytes: what protobuf holds is below 2 GiB


def as_bytes(body: Body, metadata: Mapping[str, str]) -> bytes:
    """A file.

    Raises:
        ExportError: the tensors in it are too large, or the graph is not a valid one.
        ImportError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("to write ONNX files takes onnx: pip install fundl[onnx]") from error
    size = sum(array.nbytes for array in body.constants.values())
    if size > _LARGEST:
        raise ExportError(f"an ONNX file holds less than 2 GiB, and the tensors that are to be in this one take {size:,} bytes")
    graph = _graph(body, "function")
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR, producer_name="fundl")
    onnx.helper.set_model_props(model, {**metadata})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _graph(body: Body, name: str) -> "onnx.GraphProto":
    import onnx

    operations = [_node(operation, index) for index, operation in enumerate(body.operations)]
    constants = [onnx.numpy_helper.from_array(array, key) for key, array in body.constants.items()]
    return onnx.helper.make_graph(operations, name, _infos(body.inputs), _infos(body.outputs), constants)


def _infos(values: Sequence[Value]) -> "list[onnx.ValueInfoProto]":
    import onnx

    return [onnx.helper.make_tensor_value_info(value.name, element(value.dtype).number, [*value.shape]) for value in values]


def _node(operation: Operation, index: int) -> "onnx.NodeProto":
    import onnx

    attributes = {name: _attribute(value, f"{name}_{index}") for name, value in operation.attributes.items()}
    name = f"{operation.kind}_{index}"
    return onnx.helper.make_node(operation.kind, [*operation.inputs], [*operation.outputs], name=name, **attributes)


def _attribute(value: Attribute, name: str) -> "int | float | str | list[int] | onnx.GraphProto":
    if isinstance(value, Body):
        return _graph(value, name)
    return value if isinstance(value, int | float | str) else [*value]
