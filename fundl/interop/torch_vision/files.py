"""Models of torchvision's layouts, read from files and states of modules, and written as such."""

import os
import re
from collections.abc import Mapping
from typing import Final, TypeAlias, overload

import torch
from torch import Tensor

from fundl._common.suggestions import with_suggestions
from fundl.interop._layouts import Stored, filled, stored, tensors_of, write_tensors
from fundl.interop.torch_vision.resnet import ResNet, ResNetModel
from fundl.interop.torch_vision.vit import ViT, ViTModel
from fundl.layer import Model
from fundl.layers.batch_statistics import with_statistics
from fundl.saving._file import opened

Sizes: TypeAlias = ResNet | ViT

_COUNT: Final = "num_batches_tracked"
"""How many batches a module has seen, which says nothing of what it computes."""

_OLDER: Final = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}
"""What files of torchvision's first vision transformers call the layers of a network."""


@overload
def load(
    path: str | os.PathLike[str],
    sizes: ResNet,
    *,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
) -> ResNetModel: ...
@overload
def load(
    path: str | os.PathLike[str], sizes: ViT, *, dtype: torch.dtype | None = ..., device: torch.device | str | None = ...
) -> ViTModel: ...
@with_suggestions
def load(
    path: str | os.PathLike[str],
    sizes: Sizes,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ResNetModel | ViTModel:
    """The model in a safetensors file that holds the state of one of torchvision's modules.

    The logits are those of the module in evaluation, up to rounding. A ResNet has the module's running statistics, and uses
    them; ``without_statistics(model)`` is the module in training.

    Args:
        path: of the file.
        sizes: of the model; the names of torchvision's functions are known to `ResNet.named` and `ViT.named`.
        dtype: of the parameters; None, the default, for that of the file.
        device: where they go; by default the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not have the tensors of these sizes: the message lists all that differ.
    """
    with opened(path) as file:
        return _filled(stored(file), sizes, f"the tensors in {path}", dtype, device)


@overload
def from_state_dict(
    state: Mapping[str, Tensor],
    sizes: ResNet,
    *,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
) -> ResNetModel: ...
@overload
def from_state_dict(
    state: Mapping[str, Tensor], sizes: ViT, *, dtype: torch.dtype | None = ..., device: torch.device | str | None = ...
) -> ViTModel: ...
@with_suggestions
def from_state_dict(
    state: Mapping[str, Tensor],
    sizes: Sizes,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ResNetModel | ViTModel:
    """The model of a module's `state_dict()`, with copies of its tensors: as `load`, of which it has the arguments.

    Raises:
        ValueError: the state does not have the tensors of these sizes: the message lists all that differ.
    """
    found = {name: Stored(tensor, tensor.detach().clone) for name, tensor in state.items()}
    return _filled(found, sizes, "the tensors of the state", dtype, device)


@with_suggestions
def to_state_dict(model: Model, sizes: Sizes) -> dict[str, Tensor]:
    """The state of torchvision's module, of copies of a model's tensors: for its ``load_state_dict``.

    Args:
        model: of the structure that ``sizes.model()`` has, a ResNet with statistics; dropout and keys make no difference.
        sizes: what the model was made of.

    Raises:
        ValueError: the model is not one of these sizes, or has no statistics.

    >>> from fundl import initialize, key, tree
    >>> from fundl.interop import torch_vision
    >>> sizes = torch_vision.ViT(image=8, patch=4, features=8, hidden=16, blocks=1, heads=2, classes=3)
    >>> model = initialize(key(0), sizes.model())
    >>> state = torch_vision.to_state_dict(model, sizes)
    >>> state["encoder.pos_embedding"].shape
    torch.Size([1, 5, 8])
    >>> tree.equal(torch_vision.from_state_dict(state, sizes), model)
    True
    """
    return {name: tensor.detach().clone() for name, tensor in _tensors(model, sizes).items()}


@with_suggestions
def save(path: str | os.PathLike[str], model: Model, sizes: Sizes) -> None:
    """Write a model into a safetensors file, by the names of torchvision's state; the rest as `to_state_dict`."""
    write_tensors(path, _tensors(model, sizes))


# --- What both have in common ------------------------------------------------------------------------------------------


def _filled(
    found: Mapping[str, Stored], sizes: Sizes, what: str, dtype: torch.dtype | None, device: torch.device | str | None
) -> ResNetModel | ViTModel:
    own = next((one.like.dtype for one in found.values() if one.like.is_floating_point()), torch.float32)
    renamed = {_newer(name): one for name, one in found.items()}
    like: ResNetModel | ViTModel = sizes.model(dtype=own)
    return filled(
        with_statistics(like),
        sizes.names(),
        renamed,
        what=f"{what} are not those of {sizes}",
        left_out=(_COUNT,),
        device=device,
        dtype=dtype,
    )


def _newer(name: str) -> str:
    for older, newer in _OLDER.items():
        name = name.replace(older, newer)
    return name


def _tensors(model: Model, sizes: Sizes) -> dict[str, Tensor]:
    """The tensors by name, and the counts that torchvision's modules have beside running statistics."""
    if isinstance(sizes, ResNet) and isinstance(model, ResNetModel) and model.stem[1].mean is None:
        raise ValueError(
            "the model has no statistics, which torchvision's modules need in evaluation: let calibrate(model, batches) find"
            " them, or follow them with train_step(..., track=0.1)"
        )
    tensors = tensors_of(model, sizes.names(), sizes)
    counts = [re.sub("running_mean$", _COUNT, name) for name in tensors if name.endswith("running_mean")]
    return {**tensors, **{name: torch.zeros((), dtype=torch.int64) for name in counts}}
