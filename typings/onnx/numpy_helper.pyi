import numpy as np
from onnx import TensorProto

def from_array(array: np.ndarray[tuple[int, ...], np.dtype[np.generic[object]]], name: str | None = None) -> TensorProto: ...
