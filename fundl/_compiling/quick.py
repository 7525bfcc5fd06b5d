"""What the code of all quick calls has: it checks that torch is set as it was, and tensors are as they were; and makes some."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from fundl._compiling import torch_private
from fundl._compiling.ambient import Ambient, ambient
from fundl._compiling.kinds import Like
from fundl._compiling.walk import Source

MOST: Final = 16
"""So many quick calls a compiled function keeps, each for arguments of one kind."""


def write_ambient(source: Source, now: Ambient, *, autocast: bool) -> None:
    """Write that torch is set to what it was set to.

    Args:
        source: where to write it.
        now: what that is.
        autocast: whether to ask for autocast, too: the guard of some tensors sees it.
    """
    if now.is_usual:
        source.scope |= {
            "modes": torch_private.mode_count,
            "function_modes": torch_private.function_mode_count,
            "threads": torch.get_num_threads,
            "default_dtype": torch.get_default_dtype,
            "deterministic": torch.are_deterministic_algorithms_enabled,
            "autocast": torch_private.is_any_autocast,
        }
        conditions = ["modes()", "function_modes()", f"threads() != {now.threads}"]
        conditions += [f"default_dtype() is not {source.constant(now.default_dtype)}"]
        conditions += [f"deterministic() is not {now.deterministic}"]
        if autocast:
            conditions.append("autocast()")
    else:
        source.scope |= {"watched": torch_private.is_watched, "ambient": ambient}
        conditions = ["watched()", f"ambient() != {source.constant(now)}"]
    source.add(f"if {' or '.join(conditions)}: return MISS")


def write_guard(source: Source, names: Sequence[str], leaves: Sequence[Tensor], *, any_rows: bool = False) -> None:
    """Write that tensors are as they were.

    Args:
        source: where to write it.
        names: of the tensors there.
        leaves: the tensors, as they were.
        any_rows: whether they may have any number of rows.
    """
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, leaf in zip(names, leaves, strict=True):
        first, _ = unique.setdefault(id(leaf), (name, leaf))
        if first is not name:  # the guard takes no tensor twice
            source.add(f"if {name} is not {first}: return MISS")
    if unique:
        check = source.constant(torch_private.guard([leaf for _, leaf in unique.values()], any_rows=any_rows))
        source.add(f"if not {check}({', '.join(name for name, _ in unique.values())}): return MISS")


def write_empty(source: Source, names: Sequence[str], kinds: Sequence[Like], *, rows: str = "") -> None:
    """Write what makes tensors.

    Args:
        source: where to write it.
        names: of the tensors there.
        kinds: what they are like.
        rows: an expression for how many of that each of them holds, along a further first axis; nothing for one, without it.
    """
    source.scope["make"] = torch.empty
    for name, (dtype, shape, device) in zip(names, kinds, strict=True):
        sizes = f"({rows}, *{shape})" if rows else shape
        source.add(f"{name} = make({sizes}, dtype={source.constant(dtype)}, device={source.constant(device)})")
