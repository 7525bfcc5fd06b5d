"""The manifest of a file of compiled functions: it is checked, and so is what else is in the file, before any of it is used."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

from fundl._compiling import store

T = TypeVar("T")

FORMAT: Final = 2
NAME: Final = "fundl.json"


@attrs.frozen
class Form:
    """What the manifest says of a compiled program.

    Args:
        library: the digest of what was compiled.
        role: which of the programs for a cache key it is.
        threads: the number that torch was set to.
        devices: of the arguments, each with its model.
        classes: a digest of the classes of the arguments, and of all their static values.
    """

    library: str
    role: str
    threads: int
    devices: dict[str, str]
    classes: str


@attrs.frozen
class Manifest:
    """What the manifest says.

    Args:
        format: of the file.
        options: that the function was compiled with, by name.
        function: its name.
        parts: digests of the parts of the function, by name.
        needs: versions and the machine, which must be the same where the file is loaded.
        instructions: sets of instructions that the CPU must have.
        forms: the compiled programs, at least one.
    """

    format: int
    options: dict[str, str]
    function: str
    parts: dict[str, str]
    needs: dict[str, str]
    instructions: list[str]
    forms: list[Form]


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
    raw = _Part(json.loads(contents[NAME]))
    if (version := raw.value("format", int)) != FORMAT:
        return {}, version
    manifest = _manifest(raw)
    _require_all(contents, manifest)
    return contents, manifest


def library(contents: Mapping[str, bytes], name: str) -> store.Files:
    """The files of a library in a file."""
    inside = f"{name}/"
    return {path.removeprefix(inside): content for path, content in contents.items() if path.startswith(inside)}


# --- Its shape ----------------------------------------------------------------------------------------------------------


class _Part:
    """A dictionary of a manifest, of which all values are asked for with their types."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise MisshapenError(f"{NAME} holds {raw!r:.50}, where it should say what is in the file")
        self._raw: dict[object, object] = raw

    def require_only(self, names: set[str]) -> None:
        """Raise if there is more than these."""
        if more := self._raw.keys() - names:
            raise MisshapenError(f"{NAME} says more than it should: {min(map(repr, more))}")

    def value(self, name: str, kind: type[T]) -> T:
        """The value of a name, of a type."""
        value = self._raw.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _wrong(name, value)
        return value

    def texts(self, name: str) -> dict[str, str]:
        """A dictionary of texts."""
        part = _Part(self._raw.get(name))
        return {str(key): part.value(str(key), str) for key in part._raw}


def _wrong(name: str, value: object) -> MisshapenError:
    return MisshapenError(f"{NAME} has {value!r:.50} for {name!r}")


def _manifest(raw: _Part) -> Manifest:
    raw.require_only({field.name for field in attrs.fields(Manifest)})
    instructions: list[object] = raw.value("instructions", list)
    texts = [text for text in instructions if isinstance(text, str)]
    forms = [_form(_Part(part)) for part in raw.value("forms", list)]
    if len(texts) < len(instructions) or not forms:
        raise _wrong("instructions" if forms else "forms", instructions)
    options, parts, needs = (raw.texts(name) for name in ("options", "parts", "needs"))
    return Manifest(FORMAT, options, raw.value("function", str), parts, needs, texts, forms)


def _form(raw: _Part) -> Form:
    raw.require_only({field.name for field in attrs.fields(Form)})
    library, role, classes = (raw.value(name, str) for name in ("library", "role", "classes"))
    form = Form(library, role, raw.value("threads", int), raw.texts("devices"), classes)
    if not store.is_digest(form.library):
        raise _wrong("library", form.library)
    return form


def _require_all(contents: Mapping[str, bytes], manifest: Manifest) -> None:
    """Raise unless a file has all that the manifest names, as it was, and nothing else."""
    libraries = {form.library for form in manifest.forms}
    for path in contents:
        folder, separator, file = path.partition("/")
        known = folder in libraries and store.is_plain(file) if separator else path == NAME or _is_of_a_form(path, manifest)
        if not known:
            raise MisshapenError(f"it holds {path!r}")
    for number in range(len(manifest.forms)):
        if f"{number}.pickle" not in contents:
            raise MisshapenError(f"it lacks {number}.pickle")
    for name in sorted(libraries):
        files = library(contents, name)
        if not files or store.digest(files) != name:
            raise MisshapenError(f"it does not hold the code of the digest {name}")


def _is_of_a_form(path: str, manifest: Manifest) -> bool:
    """Whether a path is that of a pickle or a tensor of one of the forms."""
    found = re.fullmatch(r"(0|[1-9][0-9]{0,5})\.(pickle|tensor\.[0-9]{1,9})", path)
    return found is not None and int(found[1]) < len(manifest.forms)
