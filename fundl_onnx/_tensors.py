"""Files of tensors, as `fundl.save` writes them, read without torch."""

import json
import os
import re
from pathlib import Path
from typing import Final

import numpy as np

from fundl_onnx._trees import Array

_DTYPES: Final = {
    "BOOL": np.bool_, "F16": np.float16, "F32": np.float32, "F64": np.float64, "I16": np.int16, "I32": np.int32,
    "I64": np.int64, "I8": np.int8, "U8": np.uint8,
}  # fmt: skip


def name_in_graph(path: str) -> str:
    """The name that a graph has for the leaf of a tree: ``state.model[0].weight`` becomes ``state.model.0.weight``."""
    return re.sub(r"""\[(?:'([^']*)'|"([^"]*)"|([^\]]*))\]""", lambda found: f".{next(filter(None, found.groups()), '')}", path)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: the file is none, or holds a dtype that numpy lacks.
    """
    content = Path(path).read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header: dict[str, dict[str, object]] = json.loads(content[8 : 8 + length])
        return {name: _array(content, 8 + length, about) for name, about in header.items() if name != "__metadata__"}
    except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no safetensors file of dtypes that numpy has: {error}") from error


def _array(content: bytes, start: int, about: dict[str, object]) -> Array:
    offsets, shape = about["data_offsets"], about["shape"]
    assert isinstance(offsets, list)
    assert isinstance(shape, list)
    own = content[start + int(offsets[0]) : start + int(offsets[1])]
    return np.frombuffer(own, _DTYPES[str(about["dtype"])]).reshape(shape)
