"""Models read from folders of Hugging Face's, and written as such."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import torch

from fundl._common.suggestions import with_suggestions
from fundl.interop._layouts import filled, stored, tensors_of, write_tensors
from fundl.interop.hugging_face._config import Config
from fundl.interop.hugging_face.gpt2 import GPT2, GPT2Model
from fundl.interop.hugging_face.llama import Llama, LlamaModel
from fundl.layer import Model
from fundl.saving._file import opened

P = TypeVar("P", bound=Model)

Sizes: TypeAlias = GPT2 | Llama
_KINDS: Final[Mapping[str, type[Sizes]]] = {"gpt2": GPT2, "llama": Llama, "mistral": Llama, "qwen2": Llama}

_LEFT_OUT: Final = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""What older files have beside parameters: masks and angles, which layers find by themselves."""

_LAST: Final = "lm_head.weight"
"""Which a model whose embedding is tied may have a second time."""


@with_suggestions
def load(
    folder: str | os.PathLike[str],
    *,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[GPT2Model | LlamaModel, Sizes]:
    """The model in a folder of Hugging Face's, and its sizes.

    The folder has config.json and model.safetensors, or the parts of that and model.safetensors.index.json. They are read, and
    nothing else: no network is asked, and no code is run. The logits are those of transformers, up to rounding.

    Args:
        folder: where the files are.
        dropout: the rate at which features are dropped in training; see `GPT2.model` and `Llama.model`.
        dtype: of the parameters; None, the default, for that of the file.
        device: where they go; by default the CPU.

    Returns:
        The model, tokens (B, T) to logits (B, T, V), and a `GPT2` or a `Llama`, with which another one can be made.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model is of a kind, or has a setting, that is not known here, or the files do not have the tensors that
            config.json promises: the message lists all that differ.

        model, sizes = hugging_face.load("gpt2")
        tokens = language.generate(key(0), model, prompt, 50, top_p=0.9)
    """
    where = Path(folder)
    config = Config.read(where)
    kind = config.get("model_type", str)
    if kind not in _KINDS:
        raise ValueError(f"in {config.where}, model_type is {kind!r}; known here are {', '.join(_KINDS)}")
    sizes = _KINDS[kind].of_config(config)
    with ExitStack() as stack:
        files = [stack.enter_context(opened(file)) for file in _files(where)]
        found = {_full_name(name, sizes): one for file in files for name, one in stored(file).items()}
        own = next((one.like.dtype for one in found.values()), torch.float32)
        names = sizes.names()
        is_tied = not any(piece.name == _LAST for pieces in names.values() for piece in pieces)
        model = filled(
            sizes.model(dropout=dropout, dtype=own),
            names,
            found,
            what=f"the tensors in {where} are not those that config.json promises",
            left_out=(*_LEFT_OUT, _LAST) if is_tied else _LEFT_OUT,
            device=device,
            dtype=dtype,
        )
    return model, sizes


@with_suggestions
def save(folder: str | os.PathLike[str], model: Model, sizes: Sizes) -> None:
    """Write a model into a folder, in the layout that transformers reads: config.json and model.safetensors.

    Args:
        folder: where to; it is made, if it is not there.
        model: of the structure that ``sizes.model()`` has; dropout and keys make no difference.
        sizes: what `load` gave with the model, or made it.

    Raises:
        ValueError: the model is not one of these sizes.

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import initialize, key, tree
    >>> from fundl.interop import hugging_face
    >>> sizes = hugging_face.GPT2(vocabulary=50, positions=16, features=8, blocks=2, heads=2)
    >>> model = initialize(key(0), sizes.model())
    >>> with TemporaryDirectory() as folder:
    ...     hugging_face.save(folder, model, sizes)
    ...     same, _ = hugging_face.load(folder)
    >>> tree.equal(same, model)
    True
    """
    tensors = tensors_of(model, sizes.names(), sizes)
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    write_tensors(where / "model.safetensors", tensors)
    (where / "config.json").write_text(json.dumps(sizes.config(), indent=2) + "\n", encoding="utf-8")


# --- Files -------------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """The files with tensors: one, or those that an index tells of."""
    index = folder / "model.safetensors.index.json"
    if (whole := folder / "model.safetensors").exists() or not index.exists():
        return [whole]
    entries = json.loads(index.read_text(encoding="utf-8"))
    parts: object = entries.get("weight_map") if isinstance(entries, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) and Path(part).name == part for part in parts.values()):
        raise ValueError(f"{index} must have a weight_map from the names of tensors to those of files beside it")
    return [folder / part for part in sorted({*parts.values()})]


def _full_name(name: str, sizes: Sizes) -> str:
    """The name of a tensor with its first word, which files of a model without its last layer lack."""
    first = "transformer." if isinstance(sizes, GPT2) else "model."
    return name if name.startswith((first, "lm_head.")) else first + name
