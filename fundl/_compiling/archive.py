"""Compiled functions in files: what one process traced and compiled, another one runs, on a machine without a compiler.

A file is a zip archive. It has a manifest in JSON, which is checked before all else; for each compiled program (a form) a
pickle of its cache key and of its interface; and the libraries, each in a folder named by the digest of its files. So a file
can add a library to those that are on disk, and change none.
"""

import io
import json
import os
import pickle
import pkgutil
import platform
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, cast

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import processor, store
from fundl._common.files import atomic_file, existing_file
from fundl._compiling import cache, identity, manifests
from fundl._compiling.cache_keys import CacheKey
from fundl._compiling.manifests import Form, Manifest
from fundl._compiling.programs import Interface, Kind, Program, Run, Trace
from fundl._compiling.trees import flatten, statics


@attrs.frozen(eq=False)
class Origin:
    """What a file is of."""

    function: object  # that was compiled
    name: str  # of it
    options: Mapping[str, str]  # that it was compiled with


# --- Saving -------------------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], origin: Origin, programs: Mapping[str, Sequence[Program[Kind, Run]]]) -> None:
    """Write compiled programs, given by role, to a file, whole or not at all.

    Raises:
        TypeError: a cache key or a result holds what cannot be pickled, or is not the same when it comes back.
        ValueError: there is nothing to save.
    """
    entries = [(role, program) for role, of_role in programs.items() for program in of_role]
    if not entries:
        raise ValueError(f"{origin.name} is not compiled yet, so there is nothing to save: call it first")
    pickled = [_pickled(origin, program) for _, program in entries]
    libraries = {program.library: _files(program.library) for _, program in entries}
    names = {library: store.digest(files) for library, files in libraries.items()}
    forms = [
        Form(
            names[program.library],
            role,
            program.key.settings.threads,
            {str(device): _device_name(device) for device in program.key.devices},
            identity.digest(program.key.signature),
        )
        for role, program in entries
    ]
    parts, options = identity.parts(origin.function), dict(origin.options)
    manifest = Manifest(manifests.FORMAT, options, origin.name, parts, _needs(), sorted(processor.instructions()), forms)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, manifests.NAME, json.dumps(attrs.asdict(manifest), indent=1).encode())
        for number, form in enumerate(pickled):
            _add(archive, f"{number}.pickle", form)
        for library, files in {names[library]: files for library, files in libraries.items()}.items():
            for name, content in sorted(files.items()):
                _add(archive, f"{library}/{name}", content)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980: the same forms make the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _files(library: Path) -> store.Files:
    """The files of a library, as they were made."""
    try:
        files = store.read(library)
    except OSError:
        files = {}
    if not files or (store.is_digest(library.name) and store.digest(files) != library.name):
        raise ValueError(f"the compiled code is no longer in {library}: somebody has removed it; make the function anew")
    return files


_TYPES: Final = {cls: name for name, cls in vars(types).items() if isinstance(cls, type) and cls.__module__ == "builtins"}


class _Pickler(pickle.Pickler):
    """Knows types of functions; and of a tensor it takes the memory that it spans, from its first number to its last."""

    @override
    def reducer_override(self, obj: object) -> tuple[Callable[..., object], tuple[object, ...]]:  # type: ignore[explicit-any]  # of any arguments
        if isinstance(obj, type) and obj in _TYPES:
            return pkgutil.resolve_name, (f"types.{_TYPES[obj]}",)
        if not isinstance(obj, Tensor):
            return NotImplemented  # type: ignore[no-any-return]  # pickle does what it always does
        shape, strides = tuple(obj.shape), obj.stride()
        spanned = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) if obj.numel() else 0
        memory = identity.numbers(obj.detach().as_strided((spanned,), (1,)))
        return _tensor, (memory, obj.dtype, shape, strides, str(obj.device))


def _tensor(memory: bytes, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], device: str) -> Tensor:
    flat = torch.frombuffer(bytearray(memory), dtype=dtype) if memory else torch.empty(0, dtype=dtype)
    return flat.to(device, copy=True).as_strided(shape, strides)


def _pickled(origin: Origin, program: Program[Kind, Run]) -> bytes:
    """The cache key and the interface of a program, if the key is the same when it comes back."""
    file = io.BytesIO()
    try:
        _Pickler(file).dump((program.key, program.interface))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"{origin.name} cannot be saved: {_unpicklable(program) or error}") from error
    again, _ = _unpickled(file.getvalue())
    if again != program.key:
        raise TypeError(
            f"{origin.name} cannot be saved, as its arguments would not be recognised: {program.key.explain(again)}, which is"
            " equal to no other object, not to its own copy either: give its class an __eq__ and a __hash__ (attrs.frozen does)"
        )
    return file.getvalue()


def _unpickled(form: bytes) -> tuple[CacheKey, Interface]:
    loaded: object = pickle.loads(form)
    match loaded:
        case (CacheKey() as key, Interface() as interface):
            return key, interface
        case _:
            raise TypeError(f"{type(loaded).__name__} is no pair of a cache key and an interface")


def _unpicklable(program: Program[Kind, Run]) -> str:
    """Which value of the arguments, or of the result, cannot be pickled, in words; an empty string if each can be."""
    result = flatten(program.interface.result, "", constants=True).signature
    for name, signature in (*program.key.signature.arguments, ("the result", result)):
        for path, value in statics(signature, name):
            try:
                pickle.dumps(value)
            except Exception as error:  # of whatever kind its class raises
                return (
                    f"{path} is {value!r}, which cannot be pickled ({error}): give it a name at the top of a module, where the"
                    " process that loads the file finds it (no lambda, nothing made inside of a function)"
                )
    return ""


# --- What a file needs --------------------------------------------------------------------------------------------------


def _needs() -> dict[str, str]:
    """What must be as it was, by name."""
    return {
        "torch": torch.__version__,
        "fundl": f"{_version()}, sources {identity.source_digest()}",
        "Python": f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}",
        "the system": sys.platform,
        "the machine": platform.machine(),
        "the CPU's capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version() -> str:
    try:
        return version("fundl")
    except PackageNotFoundError:  # it is run from its sources
        return "unknown"


def _device_name(device: torch.device) -> str:
    """What a device is; an empty string for the CPU, and where there is no such device."""
    if device.type != "cuda" or not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        return ""
    return f"{torch.cuda.get_device_name(device)}, of capability {torch.cuda.get_device_capability(device)}"


def _named_device(name: str) -> str:
    try:
        return _device_name(torch.device(name))
    except RuntimeError:  # there is no such type of device
        return "nothing that torch knows"


# --- Loading ------------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], origin: Origin, install: Callable[[CacheKey, Kind, Path], Run]
) -> list[tuple[str, Program[Kind, Run], Trace]]:
    """The compiled programs in a file that `save` wrote, each with its role, ready to run.

    Args:
        path: of the file.
        origin: what the file must be of.
        install: makes what runs, of a key, an interface and the folder of a library.

    Raises:
        FileNotFoundError: there is no such file; another OSError if it may not be read, or its libraries not be written.
        ValueError: it is no such file, or not all of it, or does not fit the function or this process.
    """
    where = existing_file(path)
    content = Path(where).read_bytes()
    try:
        contents, manifest = manifests.read(content)
    except Exception as error:  # of any kind: modules for zip archives and JSON have their own, and others if all is wrong
        raise ValueError(
            f"{where} is not a file of compiled functions, or only a part of one ({error}): save it anew"
        ) from error
    if isinstance(manifest, int):
        age = "a later fundl" if manifest > manifests.FORMAT else "an earlier fundl"
        advice = "update fundl" if manifest > manifests.FORMAT else "save it anew"
        raise ValueError(f"{where} is of format {manifest}, from {age}; this one reads format {manifests.FORMAT}: {advice}")
    for reason in _misfits(manifest, origin):
        raise ValueError(f"{where} {reason}")
    unpickled = [_form(where, contents[f"{number}.pickle"], form) for number, form in enumerate(manifest.forms)]
    libraries = {form.library: cache.install(manifests.library(contents, form.library)) for form in manifest.forms}
    found: list[tuple[str, Program[Kind, Run], Trace]] = []
    for form, (key, interface, start) in zip(manifest.forms, unpickled, strict=True):
        kind, library = cast("Kind", interface), libraries[form.library]  # as it was saved from the same function
        try:
            program = Program(key, kind, library, install(key, kind, library))
        except Exception as error:  # of whatever kind: what loads libraries has several
            raise ValueError(f"{where} holds code that this system cannot load: {cache.first_line(error)}") from error
        trace = Trace(f"it was loaded from {where}", time.perf_counter() - start, cached=True, loaded=True)
        found.append((form.role, program, trace))
    return found


# --- Whether it fits ----------------------------------------------------------------------------------------------------


def _misfits(manifest: Manifest, origin: Origin) -> Iterator[str]:
    """Why a file does not fit the function, or this process."""
    if manifest.function != origin.name:
        yield f"is of {manifest.function}, and not of {origin.name}: load it into the function that it was saved from"
    if different := _differences(manifest.options, origin.options):
        yield f"was made with other options ({different}): compile with those that were, or save it anew"
    if different := _differences(manifest.needs, _needs()):
        yield f"does not fit this process ({different}): load it where all that is as it was, or save it anew here"
    if missing := {*manifest.instructions} - processor.instructions():
        yield f"was compiled for instructions that this CPU lacks ({', '.join(sorted(missing))}): save it anew on this machine"
    for form in manifest.forms:
        if different := _differences(form.devices, {name: _named_device(name) for name in form.devices}):
            yield f"was compiled for another device ({different}): save it anew on this machine"
    if (threads := torch.get_num_threads()) not in (known := sorted({form.threads for form in manifest.forms})):
        yield (
            f"was compiled where torch.get_num_threads() was {' or '.join(map(str, known))}, and it is {threads}:"
            f" call torch.set_num_threads({known[0]}) first, or save it anew"
        )
    if different := _changed(manifest.parts, identity.parts(origin.function)):
        yield f"is of another {origin.name} ({different} differs): make it as the saved one was made, or save it anew"


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} was {old or 'nothing'}, and is {after.get(name) or 'nothing'}"
        for name, old in before.items()
        if old != after.get(name)
    )


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return ", ".join(name for name in {**before, **after} if before.get(name) != after.get(name))


# --- Taking over --------------------------------------------------------------------------------------------------------


def _form(where: str, content: bytes, form: Form) -> tuple[CacheKey, Interface, float]:
    """The cache key and the interface of a program; and the time before they were read."""
    start = time.perf_counter()
    try:
        key, interface = _unpickled(content)
    except Exception as error:  # of whatever kind: classes raise theirs
        raise ValueError(
            f"{where} refers to something that is not there ({error}): the modules of the classes and functions among the"
            " arguments must be as they were; or save it anew"
        ) from error
    if identity.digest(key.signature) != form.classes:
        raise ValueError(
            f"{where} was made when classes or functions among the arguments, or what these name, were others: save it anew"
        )
    return key, interface, start
