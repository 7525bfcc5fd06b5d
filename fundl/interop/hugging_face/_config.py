"""What config.json says of a model: entries of known types, and errors that name them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar, cast, overload

from fundl.layer import AnyLayer
from fundl.layers.activation import ReLU
from fundl.layers.self_gated import GELU, SiLU

T = TypeVar("T", int, float, bool, str)
_MISSING: Final = object()


class Config:
    """The entries of a config.json."""

    def __init__(self, entries: Mapping[str, object], where: str) -> None:
        self._entries = entries
        self.where = where

    @classmethod
    def read(cls, folder: Path) -> "Config":
        """That of a folder."""
        file = folder / "config.json"
        try:
            found: object = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} has no config.json, which says what model it is: give the folder that it was downloaded into"
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not a text of JSON ({error})") from None
        if not isinstance(found, dict):
            raise ValueError(f"{file} must hold a table of names and values, not {type(found).__name__}")
        return cls(cast("dict[str, object]", found), str(file))  # JSON has texts as keys

    @overload
    def get(self, name: str, kind: type[T]) -> T: ...
    @overload
    def get(self, name: str, kind: type[T], default: T) -> T: ...
    @overload
    def get(self, name: str, kind: type[T], default: None) -> T | None: ...
    def get(self, name: str, kind: type[T], default: object = _MISSING) -> object:
        """An entry of a type; null, and what is not there, is the default."""
        value = self._entries.get(name)
        if value is None:
            if default is _MISSING:
                raise ValueError(f"{self.where} says nothing of {name}, which must be there")
            return default
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise ValueError(f"in {self.where}, {name} must be of type {kind.__name__}, not {value!r}")
        return value

    def inside(self, name: str) -> "Config | None":
        """A table among the entries."""
        value = self._entries.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError(f"in {self.where}, {name} must be a table, not {value!r}")
        return Config(cast("dict[str, object]", value), f"{self.where}, {name}")

    def require(self, name: str, wanted: T, *, default: T) -> None:
        """Raise unless an entry is what the layers of fundl do."""
        if (value := self.get(name, type(wanted), default)) != wanted:
            raise ValueError(f"in {self.where}, {name} is {value!r}, but only {wanted!r} is known here")

    def require_alike(self, name: str) -> None:
        """Raise unless all that a list holds is the same, if it is there."""
        value = self._entries.get(name)
        if isinstance(value, list) and any(one != value[0] for one in value):
            raise ValueError(f"in {self.where}, {name} are of several kinds, but only blocks that are alike are known here")


_ACTIVATIONS: Final[Mapping[str, AnyLayer]] = {
    "gelu": GELU(),
    "gelu_new": GELU("tanh"),
    "gelu_pytorch_tanh": GELU("tanh"),
    "relu": ReLU(),
    "silu": SiLU(),
}


def activation_of(name: str) -> AnyLayer:
    """The layer of an activation, by its name in a config.json."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not known here; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
