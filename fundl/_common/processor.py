"""The processor, as Linux describes it: which kernel is the fastest, and which compiled code runs, depends on it."""

import functools
import platform
import re
from pathlib import Path
from typing import Final

_OF_NUMBERS: Final = "avx|s?sse|fma|bmi|f16c|movbe|popcnt|abm|gfni|amx"


@functools.cache
def is_amd() -> bool:
    """Whether the processor is AMD's."""
    return "AuthenticAMD" in (_described() or platform.processor())


@functools.cache
def instructions() -> frozenset[str]:
    """The sets of instructions for numbers that the processor has, all of which code is compiled for; empty without Linux."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _described(), re.MULTILINE)
    names = found[1].split() if found else []
    return frozenset(name for name in names if not platform.machine().endswith("86_64") or re.match(_OF_NUMBERS, name))


def _described() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
