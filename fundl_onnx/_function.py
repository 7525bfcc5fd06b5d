"""A function in a file, run by onnxruntime."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from fundl_onnx._tensors import name_in_graph, read_tensors
from fundl_onnx._trees import Array, Description, Tree, arrays_of, described_arrays, filled

FORMAT = "1"


class Named(TypedDict):
    """An argument, or a result."""

    name: str
    tree: Description


class Size(TypedDict):
    """A size that may differ from call to call, the arrays and axes that have it, and what it may be."""

    name: str
    axes: list[tuple[str, int]]
    least: int
    most: int | None
    other_than: list[int]


class Contents(TypedDict):
    """What the metadata of a file say of its function."""

    arguments: list[Named]
    results: list[Named]
    whole: bool  # whether the function returns one tree, and no tuple of them
    carried: dict[str, str]  # for outputs, the inputs that they are in the next call
    same: dict[str, str]  # for what the function returns, the inputs that it is, which the graph does not hand on
    sizes: list[Size]


class Function:
    """A function that `fundl.interop.onnx` wrote to a file; `load` makes one.

    It goes from trees of numpy arrays to trees of numpy arrays: what is a tuple, list or dict in fundl is one here, and a
    record or named tuple is a dict of its fields. `run` does the same with all arrays in one flat dict, by the names that the
    graph has for them.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int) -> None:
        content = Path(path).read_bytes()
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("to run ONNX files takes onnxruntime: pip install onnxruntime, or fundl[onnx]") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.contents: Contents = _contents(path, self.metadata)
        self._inputs = {
            name: (dtype, shape) for one in self.contents["arguments"] for name, dtype, shape in described_arrays(one["tree"])
        }
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def arguments(self) -> list[str]:
        """What its arguments are called."""
        return [one["name"] for one in self.contents["arguments"]]

    @property
    def results(self) -> list[str]:
        """What its results are called."""
        return [one["name"] for one in self.contents["results"]]

    @property
    def inputs(self) -> list[str]:
        """The names of all arrays that it takes, such as ``state.model.0.weight``."""
        return [*self._inputs]

    def __call__(self, *arguments: Tree) -> Tree:
        """What the function returns.

        Args:
            arguments: trees of arrays like those that the function was exported with.

        Raises:
            TypeError: an argument is missing, or not like that.
            ValueError: a shape is not one that the file is for.
        """
        expected = self.contents["arguments"]
        if len(arguments) != len(expected):
            raise TypeError(f"the function takes {', '.join(self.arguments)}, not {len(arguments)} arguments")
        pairs = zip(arguments, expected, strict=True)
        arrays = dict(found for tree, one in pairs for found in arrays_of(tree, one["tree"], one["name"]))
        outputs = self.run(arrays)
        results = [filled(one["tree"], outputs) for one in self.contents["results"]]
        return results[0] if self.contents["whole"] else tuple(results)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What the function returns, by name.

        Args:
            arrays: all that it takes, by name.

        Raises:
            TypeError: an array is missing, or of another dtype.
            ValueError: a shape is not one that the file is for.
        """
        if missing := [name for name in self._inputs if name not in arrays]:
            raise TypeError(f"the function needs {', '.join(missing[:5])} as well")
        if unknown := [name for name in arrays if name not in self._inputs]:
            raise TypeError(f"the function takes no {', '.join(unknown[:5])}; it takes {', '.join([*self._inputs][:5])}, ...")
        self._require_like_examples(arrays)
        found = self._session.run(self._outputs, dict(arrays))
        outputs = {name: np.asarray(array) for name, array in zip(self._outputs, found, strict=True)}
        return outputs | {name: arrays[source] for name, source in self.contents["same"].items()}

    def following(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """What `run` takes next of what it returned: of a step, the state."""
        return {source: outputs[name] for name, source in self.contents["carried"].items()}

    def read(self, path: str | os.PathLike[str], argument: str | None = None) -> dict[str, Array]:
        """The arrays of an argument, by name, from a file that `fundl.save` wrote.

        Args:
            path: of the file; that of a step's first state lies beside the step.
            argument: which one; None for the first.

        Raises:
            ValueError: the file holds another tree.
        """
        name = self.arguments[0] if argument is None else argument
        tree = next((one["tree"] for one in self.contents["arguments"] if one["name"] == name), None)
        if tree is None:
            raise ValueError(f"the function has no argument {name}, only {', '.join(self.arguments)}")
        own = [found for found, _, _ in described_arrays(tree)]
        tensors = {name_in_graph(name + key): array for key, array in read_tensors(path).items()}
        if missing := [found for found in own if found not in tensors]:
            raise ValueError(f"{path} is not of a tree like {name}: it lacks {', '.join(missing[:5])}")
        return {found: tensors[found] for found in own}

    def tree(self, arrays: Mapping[str, Array], argument: str | None = None) -> Tree:
        """An argument as a tree, of its arrays by name: what the function is called with, of what `read` gives."""
        name = self.arguments[0] if argument is None else argument
        return next(filled(one["tree"], arrays) for one in self.contents["arguments"] if one["name"] == name)

    def _require_like_examples(self, arrays: Mapping[str, Array]) -> None:
        for name, (dtype, _) in self._inputs.items():
            if arrays[name].dtype.name != dtype:
                raise TypeError(f"{name} must be of {dtype}, not {arrays[name].dtype.name}: array.astype({dtype!r})")
        expected = {name: shape for name, (_, shape) in self._inputs.items()}
        require_shapes(expected, self.contents["sizes"], {name: arrays[name].shape for name in expected})


def require_shapes(
    expected: Mapping[str, Sequence[int | str]], sizes: Sequence[Size], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise an error unless shapes are those that a function is for.

    Args:
        expected: for each input, by name, its sizes, or the names of those that are free.
        sizes: that are free.
        shapes: of what is given.

    Raises:
        ValueError: one is not.
    """
    found: dict[str, tuple[int, str]] = {}
    for name, wanted in expected.items():
        if len(shapes[name]) != len(wanted):
            raise ValueError(f"{name} must be of shape {_text(wanted)}, not {shapes[name]}")
        for size, one in zip(shapes[name], wanted, strict=True):
            known = found.setdefault(one, (size, name))[0] if isinstance(one, str) else one
            if size != known:
                other = f", for {found[one][1]} has {known} {one}" if isinstance(one, str) else ""
                raise ValueError(f"{name} must be of shape {_text(wanted)}, not {shapes[name]}{other}")
    for free in sizes:
        _require_in_range(free, *found[free["name"]])


def _require_in_range(size: Size, found: int, name: str) -> None:
    least, most, gaps = size["least"], size["most"], size["other_than"]
    if found >= least and (most is None or found <= most) and found not in gaps:
        return
    upper = "" if most is None else f" and at most {most}"
    other = f", and not {', '.join(map(str, gaps))}" if gaps else ""
    raise ValueError(
        f"{name} has {found} {size['name']}, but the file was made for at least {least}{upper}{other}: export the function with"
        " an example of this size, or with a fixed one"
    )


def _text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _contents(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Contents:
    written = metadata.get("fundl.format")
    if written is None:
        raise ValueError(f"{path} was not written by fundl.interop.onnx: its metadata have no fundl.format")
    if written != FORMAT:
        raise ValueError(
            f"{path} has the format {written}, of fundl {metadata.get('fundl.version')}, and this reads the format {FORMAT}:"
            " update fundl"
        )
    contents: Contents = json.loads(metadata["fundl.function"])
    return contents
