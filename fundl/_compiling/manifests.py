"""The manifest of a file of compiled functions: it is checked, and so is what else is in the file, before any of it is used."""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Final, TypeVar, get_args, get_origin

import attrs

from fundl._common import store

FORMAT: Final = 2
NAME: Final = "fundl.json"


@attrs.frozen
class Form:
    """What the manifest says of a compiled program."""

    library: str  # the digest of what was compiled
    role: str  # which of the programs for a cache key it is
    threads: int  # that torch was set to
    devices: dict[str, str]  # of the arguments, each with its model
    classes: str  # a digest of the classes of the arguments, and of all their static values


@attrs.frozen
class Manifest:
    """What the manifest says."""

    format: int  # of the file
    options: dict[str, str]  # that the function was compiled with, by name
    function: str  # its name
    parts: dict[str, str]  # digests of the parts of the function, by name
    needs: dict[str, str]  # versions and the machine, which must be the same where the file is loaded
    instructions: list[str]  # sets of them that the CPU must have
    forms: list[Form]  # the compiled programs, at least one


T = TypeVar("T", Form, Manifest)


class MisshapenError(Exception):
    """A file is not as `archive.save` writes it."""


def read(content: bytes) -> tuple[dict[str, bytes], Manifest | int]:
    """The contents of a file, by name, and its manifest, or only its format, if that is not the one of this fundl.

    Raises:
        Exception: of any kind, if it is no such file: those of the modules for zip archives and JSON are many.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    if NAME not in contents:
        raise MisshapenError(f"it lacks {NAME}")
    raw: object = json.loads(contents[NAME])
    if isinstance(raw, dict):
        if type(raw.get("format")) is int and raw["format"] != FORMAT:
            return {}, int(raw["format"])
        if isinstance(raw.get("forms"), list):
            raw["forms"] = [_record(Form, form) for form in raw["forms"]]
    manifest = _record(Manifest, raw)
    _require_all(contents, manifest)
    return contents, manifest


def library(contents: Mapping[str, bytes], name: str) -> store.Files:
    """The files of a library in a file."""
    inside = f"{name}/"
    return {path.removeprefix(inside): content for path, content in contents.items() if path.startswith(inside)}


# --- Its shape ----------------------------------------------------------------------------------------------------------


def _record(cls: type[T], raw: object) -> T:
    """A record of a dictionary that has all of its fields, of their types, and nothing else."""
    if not isinstance(raw, dict):
        raise MisshapenError(f"{NAME} holds {raw!r:.50}, where it should say what is in the file")
    fields = {field.name: field.type for field in attrs.fields(cls)}
    if more := raw.keys() - fields:
        raise MisshapenError(f"{NAME} says more than it should: {min(map(repr, more))}")
    for name, kind in fields.items():
        value = raw.get(name)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if type(value) is not (get_origin(kind) or kind) or not all(isinstance(part, get_args(kind)[-1]) for part in parts):
            raise MisshapenError(f"{NAME} has {value!r:.50} for {name!r}")
    return cls(**raw)


def _require_all(contents: Mapping[str, bytes], manifest: Manifest) -> None:
    """Raise unless a file has all that the manifest names, something at least, as it was, and nothing else."""
    if not manifest.forms:
        raise MisshapenError(f"{NAME} has [] for 'forms'")
    libraries, pickles = {form.library for form in manifest.forms}, [f"{n}.pickle" for n in range(len(manifest.forms))]
    for path in contents:
        folder, separator, file = path.partition("/")
        known = folder in libraries and store.is_plain(file) if separator else path in {NAME, *pickles}
        if not known:
            raise MisshapenError(f"it holds {path!r}")
    for name in pickles:
        if name not in contents:
            raise MisshapenError(f"it lacks {name}")
    for name in sorted(libraries):
        files = library(contents, name)
        if not files or store.digest(files) != name:
            raise MisshapenError(f"it does not hold the code of the digest {name}")
