"""Functions in AOTInductor packages, run in Python."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar, cast

from torch import Tensor
from typing_extensions import override

from fundl._common.suggestions import with_suggestions
from fundl._compiling.trees import flatten, replace
from fundl.interop.aoti._torch import FORMAT, Package
from fundl_onnx import Contents, described_arrays, name_in_graph, require_shapes

T = TypeVar("T")


class PackagedFunction(Generic[T]):
    """A function in a package, from fundl's trees to fundl's trees; `load` makes one.

    Args:
        path: of the package.
        like: what the function returned for some arguments.
    """

    def __init__(self, path: str | os.PathLike[str], like: T) -> None:
        self._package = Package(path)
        self.metadata: Mapping[str, str] = self._package.metadata
        self.contents: Contents = _contents(path, self.metadata)
        self.inputs: list[str] = self.metadata["fundl.inputs"].split("\n")
        self.outputs: list[str] = self.metadata["fundl.outputs"].split("\n")
        arrays = [found for one in self.contents["arguments"] for found in described_arrays(one["tree"])]
        self._dtypes = {name: dtype for name, dtype, _ in arrays}
        self._shapes = {name: shape for name, _, shape in arrays}
        self._like = like
        names = [one["name"] for one in self.contents["results"]]
        parts: object = (like,) if self.contents["whole"] else like
        if not isinstance(parts, tuple) or len(parts) != len(names):
            raise TypeError(f"like is what the function returns, {', '.join(names)}, not {like!r:.60}")
        pairs = zip(names, parts, strict=True)
        self._results = [name_in_graph(path) for name, part in pairs for path in flatten(part, name, constants=True).paths]
        known = [name for one in self.contents["results"] for name, _, _ in described_arrays(one["tree"])]
        if self._results != known:
            other = next(name for name in [*known, *self._results] if (name in known) != (name in self._results))
            raise TypeError(f"like is not of the structure that the package's function returns: look at {other}")

    def __call__(self, *arguments: object) -> T:
        """What the function returns.

        Args:
            arguments: trees of tensors like those that the function was exported with, on the CPU.

        Raises:
            TypeError: an argument is missing, or not like that.
            ValueError: a shape is not one that the package is for.
        """
        names = [one["name"] for one in self.contents["arguments"]]
        if len(arguments) != len(names):
            raise TypeError(f"the function takes {', '.join(names)}, not {len(arguments)} arguments")
        flats = [flatten(argument, name) for argument, name in zip(arguments, names, strict=True)]
        tensors = {name_in_graph(path): leaf for flat in flats for path, leaf in zip(flat.paths, flat.leaves, strict=True)}
        found = self.run(tensors)
        return cast("T", replace(self._like, (found[name] for name in self._results)))

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the function returns, by name.

        Args:
            tensors: all that it takes, by name, on the CPU.

        Raises:
            TypeError: one is missing, or of another dtype.
            ValueError: a shape is not one that the package is for.
        """
        if missing := [name for name in self.inputs if name not in tensors]:
            raise TypeError(f"the function needs {', '.join(missing[:5])} as well")
        if unknown := [name for name in tensors if name not in self._dtypes]:
            raise TypeError(f"the function takes no {', '.join(unknown[:5])}; it takes {', '.join(self.inputs[:5])}, ...")
        for name, dtype in self._dtypes.items():
            if str(tensors[name].dtype) != f"torch.{dtype}":
                raise TypeError(f"{name} must be of torch.{dtype}, not {tensors[name].dtype}: tensor.to(torch.{dtype})")
        require_shapes(self._shapes, self.contents["sizes"], {name: tuple(tensors[name].shape) for name in self._shapes})
        found = self._package.run([tensors[name] for name in self.inputs])
        same = {name: tensors[source] for name, source in self.contents["same"].items()}
        return dict(zip(self.outputs, found, strict=True)) | same

    @override
    def __repr__(self) -> str:
        takes, gives = (", ".join(one["name"] for one in self.contents[part]) for part in ("arguments", "results"))
        return f"PackagedFunction(from {takes} to {gives})"


@with_suggestions
def load(path: str | os.PathLike[str], like: T) -> PackagedFunction[T]:
    """The function in a package that `export`, `export_step` or `export_apply` wrote, from trees to trees of tensors.

    Args:
        path: of the file.
        like: what the function returned for some arguments, of which the structure counts.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `like` has another structure.
        UnknownTorchError: this torch opens no packages.
        ValueError: something else wrote the file, or a newer fundl.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no {path}")
    return PackagedFunction(path, like)


def _contents(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Contents:
    written = metadata.get("fundl.format")
    if written is None:
        raise ValueError(f"{path} was not written by fundl.interop.aoti: its metadata have no fundl.format")
    if written != FORMAT:
        raise ValueError(
            f"{path} has the format {written}, of fundl {metadata.get('fundl.version')}, and this reads the format {FORMAT}:"
            " update fundl"
        )
    found: Contents = json.loads(metadata["fundl.function"])
    return found
