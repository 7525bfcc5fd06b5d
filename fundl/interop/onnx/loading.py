"""Functions in ONNX files, run by onnxruntime."""

import os
from collections.abc import Iterator
from typing import Generic, TypeVar, cast, overload

import torch
from torch import Tensor
from typing_extensions import override

import fundl_onnx
from fundl._common.suggestions import with_suggestions
from fundl._compiling.trees import flatten, replace
from fundl.interop.onnx._writer import as_array
from fundl_onnx import name_in_graph

T = TypeVar("T")


class Loaded(Generic[T]):
    """A function in a file, from fundl's trees to fundl's trees; `load` makes one."""

    def __init__(self, function: fundl_onnx.Function, like: T) -> None:
        self.function = function
        self._like = like
        names = function.results
        parts: object = (like,) if function.contents["whole"] else like
        if not isinstance(parts, tuple) or len(parts) != len(names):
            raise TypeError(f"like is what the function returns, {', '.join(names)}, not {like!r:.60}")
        pairs = zip(names, parts, strict=True)
        self._outputs = [name_in_graph(path) for name, part in pairs for path in flatten(part, name, constants=True).paths]
        known = [name for one in function.contents["results"] for name, _, _ in fundl_onnx.described_arrays(one["tree"])]
        if self._outputs != known:
            other = next((name for name in [*known, *self._outputs] if (name in known) != (name in self._outputs)), known[0])
            raise TypeError(f"like is not of the structure that the file's function returns: look at {other}")

    def __call__(self, *arguments: object) -> T:
        """What the function returns.

        Args:
            arguments: trees of tensors like those that the function was exported with, on the CPU.

        Raises:
            TypeError: an argument is missing, or not like that.
            ValueError: a shape is not one that the file is for.
        """
        names = self.function.arguments
        if len(arguments) != len(names):
            raise TypeError(f"the function takes {', '.join(names)}, not {len(arguments)} arguments")
        flats = [flatten(argument, name) for argument, name in zip(arguments, names, strict=True)]
        tensors = {name_in_graph(path): leaf for flat in flats for path, leaf in zip(flat.paths, flat.leaves, strict=True)}
        outputs = self.function.run({name: as_array(tensor) for name, tensor in tensors.items()})
        same = self.function.contents["same"]
        return cast("T", replace(self._like, self._tensors(outputs, tensors, same)))

    def _tensors(
        self, outputs: dict[str, fundl_onnx.Array], given: dict[str, Tensor], same: dict[str, str]
    ) -> Iterator[Tensor]:
        for name in self._outputs:
            yield given[same[name]] if name in same else torch.from_numpy(outputs[name])

    @override
    def __repr__(self) -> str:
        return f"Loaded({self.function!r})"


@overload
def load(path: str | os.PathLike[str], like: None = None, *, threads: int = 1) -> fundl_onnx.Function: ...
@overload
def load(path: str | os.PathLike[str], like: T, *, threads: int = 1) -> Loaded[T]: ...
@with_suggestions
def load(path: str | os.PathLike[str], like: T | None = None, *, threads: int = 1) -> fundl_onnx.Function | Loaded[T]:
    """The function in a file that `export`, `export_step` or `export_apply` wrote, run by onnxruntime.

    Args:
        path: of the file.
        like: what the function returned for some arguments, of which the structure counts: then it goes from trees of tensors
            to trees of tensors, as in fundl. None for a function from trees of numpy arrays to trees of numpy arrays; that,
            `fundl_onnx.load`, needs no torch.
        threads: how many compute; for small networks one is fastest.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed, ``pip install fundl[onnx]``.
        TypeError: `like` has another structure.
        ValueError: something else wrote the file, or a newer fundl.
    """
    function = fundl_onnx.load(path, threads=threads)
    return function if like is None else Loaded(function, like)
