"""What the processor is, as far as Linux tells; which kernel is quick, and which compiled code runs, depends on it."""

import functools
import platform
import re
from pathlib import Path
from typing import Final

_OF_NUMBERS: Final = "avx|s?sse|fma|bmi|f16c|movbe|popcnt|abm|gfni|amx"


@functools.cache
def is_amd() -> bool:
    """Whether it is one of AMD's."""
    return "AuthenticAMD" in (_described() or platform.processor())


@functools.cache
def instructions() -> frozenset[str]:
    """Which sets of instructions for numbers it has: code is compiled for all of them. None where Linux does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _described(), re.MULTILINE)
    names = found[1].split() if found else []
    return frozenset(name for name in names if not platform.machine().endswith("86_64") or re.match(_OF_NUMBERS, name))


def _described() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
