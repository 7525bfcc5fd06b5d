"""The private parts of torch that packages need, beside what compiling needs: what writes one, and what opens one."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fundl._compiling import torch_private

if TYPE_CHECKING:
    from torch.export.pt2_archive._package_weights import Weights

NAMES: Final = (
    "torch._C._aoti.AOTIModelPackageLoader.boxed_run",
    "torch._C._aoti.AOTIModelPackageLoader.get_metadata",
    "torch._inductor.config.aot_inductor.package",
    "torch._inductor.package.package.package_aoti",
)
"""What is private in torch and used here."""

FORMAT: Final = "1"
"""Of the metadata."""


def require_known() -> None:
    """Raise an error that says what this torch lacks of that, if it lacks anything.

    Raises:
        UnknownTorchError: it does.
    """
    torch_private.require_known(NAMES)


def packaged(folder: Path, metadata: Mapping[str, str]) -> bytes:
    """A package of the files in a folder, which `inductor.compile_package` wrote, with further metadata."""
    from torch._inductor.package.package import package_aoti

    for file in folder.glob("*_metadata.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | metadata))
    content = io.BytesIO()
    files: list[str | Weights] = [str(file) for file in sorted(folder.iterdir()) if file.is_file()]
    package_aoti(content, files)
    return content.getvalue()


class Package:
    """A package that is open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require_known()
        self._loader = torch._C._aoti.AOTIModelPackageLoader(os.fspath(path), "model", False, 1, -1)
        self.metadata: dict[str, str] = self._loader.get_metadata()

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What its function gives."""
        return self._loader.boxed_run([as_input(tensor) for tensor in tensors])


def as_input(tensor: Tensor) -> Tensor:
    """A tensor as compiled code reads it."""
    return torch_private.resolved(tensor.detach().cpu()).contiguous()
