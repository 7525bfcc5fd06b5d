"""Models made of what a file says that it holds."""

import os
from typing import TypeGuard

import torch

from fundl._common.suggestions import with_suggestions
from fundl.layer import Layer, Model
from fundl.saving._choice import is_in
from fundl.saving._file import File, Wanted, opened
from fundl.saving._rebuilding import Place, StructureError, rebuilt
from fundl.saving._structure import Json, children_of, kind_of
from fundl.saving._texts import structure_of
from fundl.tree import flatten, paths, unflatten


@with_suggestions
def load_model(path: str | os.PathLike[str], *, part: str = "", device: torch.device | str | None = None) -> Model:
    """The model that was saved to a file, bit for bit, made of what the file says of it: there is no need for one to fill.

    The file names the classes of layers, and has their static fields. Those of the library are known, and those that were
    registered with `saved_as`. Nothing else is made, imported or run, whatever the file says. A tensor that layers
    have in common is one again.

    What is loaded is a `Model`, of any layers: say which by ``isinstance``, or use `load` with a model to fill, which gives
    one of its type.

    Args:
        path: of a file that `save` wrote, of a model, or of a tree in which there is one.
        part: the path of the model in that tree, if it is not the whole: ``".model"`` for a `TrainState`.
        device: where the tensors go; by default to the CPU.

    Raises:
        FileNotFoundError: there is no such file; another OSError if it may not be read.
        ValueError: as `load`; the file does not say what it holds, it has a class that is not registered, or
            only some of the tensors, or what it says makes no model.

    >>> from tempfile import TemporaryDirectory
    >>> import torch
    >>> from fundl import ReLU, apply, compose, initialize, key, linear, load_model, save
    >>> model = initialize(key(0), compose(linear(2, 25), ReLU(), linear(25, 2)))
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/disk.safetensors", model)
    ...     again = load_model(f"{folder}/disk.safetensors")
    >>> torch.equal(apply(again, torch.ones(2)), apply(model, torch.ones(2)))
    True
    """
    with opened(path) as file:
        structure = structure_of(file.texts, file.where)
        if structure is None:
            raise ValueError(
                f"{file.where} does not say of what layers its model is made: load it with load(path, like), where like is a"
                " model to fill"
            )
        node = _at(structure, part, file.where)
        try:
            like = rebuilt(node, Place(part, file.tensors))
        except StructureError as error:
            raise ValueError(f"{file.where} cannot be made a model: {error}") from error
        if not _is_model(like):
            raise ValueError(
                f"{file.where} holds {kind_of(node)}{f' at {part}' if part else ''}, which is no model: give the path of the"
                f' model in it, as part=".model" for a TrainState, or fill a tree with load(path, like)'
            )
        return _filled(file, like, part, torch.device(device or "cpu"))


def _is_model(made: object) -> TypeGuard[Model]:
    return isinstance(made, Layer) or (isinstance(made, tuple) and bool(made) and all(map(_is_model, made)))


def _at(node: Json, part: str, where: str) -> Json:
    """What a structure says of a part."""
    path = ""
    while path != part:
        inside = [(path + step, child) for step, child in children_of(node) if is_in(part, path + step)]
        if not inside:
            steps = ", ".join(path + step for step, _ in children_of(node)[:8])
            raise ValueError(f"{where} has no part {part!r}: at {path or 'its root'} there are {steps or 'no parts'}")
        path, node = max(inside, key=lambda found: len(found[0]))
    return node


def _filled(file: File, like: Model, part: str, device: torch.device) -> Model:
    """The model, whose tensors are those that the header of the file tells of, with their numbers."""
    places = {part + path for path in paths(like)}
    if extra := [name for name in file.tensors if is_in(name, part) and name not in places]:
        raise ValueError(f"{file.where} has a tensor at {extra[0]}, of which its tree says nothing: load another copy")
    leaves, structure = flatten(like)
    names = {id(tensor): name for name, tensor in file.tensors.items()}
    found = {names[id(leaf)]: leaf for leaf in leaves if leaf is not None}
    numbers = dict(zip(found, file.read([Wanted(name, device) for name in found]), strict=True))
    return unflatten(structure, [None if leaf is None else numbers[names[id(leaf)]] for leaf in leaves])
