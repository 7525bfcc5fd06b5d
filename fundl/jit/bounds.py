"""Indices out of range in compiled loops: an error after the loop, not within.

Inductor has each loop check the indices that it reads, and throw at once. From a loop that runs on several threads nothing may
be thrown: the process ends (https://github.com/pytorch/pytorch/issues/195402). So the loop makes a note of it and reads at 0
instead, and what is thrown is thrown when all threads are done.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from torch._inductor.codegen.cpp import CppKernel, KernelGroup

NAMES: Final = (
    "torch._inductor.codegen.cpp.CppKernel.check_bounds",
    "torch._inductor.codegen.cpp.CppKernel.indirect_assert",
    "torch._inductor.codegen.cpp.KernelGroup.codegen_group",
)
"""What is private in torch and used here."""

_FLAG: Final = "fundl_out_of_range"
_ASSERTION: Final = re.compile(r'\w+\((?P<condition>.*), "index out of bounds: [^"]*"\)')
_ARRAY: Final = r"auto (\w+) =\s*\[&\]\s*\{{\s*__at_align__ std::array<[^;]*> tmpbuf;\s*{vector}\.store\("
"""Where the numbers of a vector are put for a loop to read at each of them."""

CheckBounds: TypeAlias = Callable[["CppKernel", object, object, bool, bool], None]
CodegenGroup: TypeAlias = Callable[["KernelGroup", str | None], str]


def noting(check_bounds: CheckBounds) -> CheckBounds:
    """What writes the check of an index: one that does not throw.

    Args:
        check_bounds: as inductor has it.
    """

    def note(kernel: "CppKernel", index: object, size: object, lower: bool, upper: bool) -> None:
        if not re.fullmatch(r"tmp\d+", str(index)):  # one that is the same for all values
            check_bounds(kernel, index, size, lower, upper)
            return
        asserted: Callable[..., str] = kernel.indirect_assert  # type: ignore[explicit-any]  # of arguments that are handed on

        def noted(*args: object) -> str:
            match = _ASSERTION.fullmatch(asserted(*args))
            assert match is not None, "torch writes its assertions in another way"
            in_arrays = re.findall(_ARRAY.format(vector=index), kernel.compute.getvalue())
            zeros = " ".join([f"{index} = decltype({index})(0);", *(f"{array}.fill(0);" for array in in_arrays)])
            return f"if (!({match['condition']})) [[unlikely]] {{ {_FLAG}.store(true); {zeros} }}"

        vars(kernel)["indirect_assert"] = noted  # for this one check
        try:
            check_bounds(kernel, index, size, lower, upper)
        finally:
            del vars(kernel)["indirect_assert"]

    return note


def throwing(codegen_group: CodegenGroup) -> CodegenGroup:
    """What writes a function of loops: one that throws at its end, if a loop has made a note.

    Args:
        codegen_group: as inductor has it.
    """

    def write(group: "KernelGroup", name: str | None = None) -> str:
        code = codegen_group(group, name)
        if _FLAG not in code:
            return code
        start, end = code.index("\n{\n") + 3, code.rindex("}")
        throw = f'if ({_FLAG}.load()) throw std::out_of_range("an index is out of range");'
        body = f"    std::atomic<bool> {_FLAG}{{false}};\n{code[start:end]}    {throw}\n"
        return f"#include <stdexcept>\n{code[:start]}{body}{code[end:]}"

    return write
