# The part of onnxruntime that is used here; onnxruntime itself has no types.
from collections.abc import Sequence

import numpy as np

class SessionOptions:
    intra_op_num_threads: int
    inter_op_num_threads: int
    log_severity_level: int

class NodeArg:
    name: str

class ModelMetadata:
    custom_metadata_map: dict[str, str]

class InferenceSession:
    def __init__(self, path_or_bytes: bytes, sess_options: SessionOptions = ..., *, providers: Sequence[str] = ...) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def get_modelmeta(self) -> ModelMetadata: ...
    def run(
        self, output_names: Sequence[str], input_feed: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic[object]]]]
    ) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic[object]]]]: ...
