"""Indices out of range in compiled loops: an error after the loop, not within.

Inductor has each loop check the indices that it reads, and throw at once. From a loop that runs on several threads nothing may
be thrown: the process ends (https://github.com/pytorch/pytorch/issues/195402). So the loop makes a note of it and reads at 0
instead, and what is thrown is thrown when all threads are done.

And it lets a negative index count from the end, as indexing does, where the operation itself refuses it: in `index_select` and
`index_add` (https://github.com/pytorch/pytorch/issues/185885), to 2.12 in embeddings and `gather` as well
(https://github.com/pytorch/pytorch/issues/183608). To 2.12, gradients of embeddings are written to any place in memory; to
2.13, nobody asks whether `scatter` refused, if its kernel is called (https://github.com/pytorch/pytorch/pull/190909).
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._compiling.torch_private import Decompositions

if TYPE_CHECKING:
    from torch._inductor.codegen.cpp import CppKernel, KernelGroup
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

NAMES: Final = (
    "torch._inductor.codegen.cpp.CppKernel.check_bounds",
    "torch._inductor.codegen.cpp.CppKernel.indirect_assert",
    "torch._inductor.codegen.cpp.KernelGroup.codegen_group",
    "torch._inductor.codegen.wrapper.PythonWrapperCodegen.set_writeline",
)
"""What is private in torch and used here."""

_FLAG: Final = "fundl_out_of_range"
_ASSERTION: Final = re.compile(r'\w+\((?P<condition>.*), "index out of bounds: [^"]*"\)')
_UNCHECKED: Final = re.compile(r"(?P<call>aoti_torch_\w*(scatter|index_put)\w*\(.*\));")
_ARRAY: Final = r"auto (\w+) =\s*\[&\]\s*\{{\s*__at_align__ std::array<[^;]*> tmpbuf;\s*{vector}\.store\("
"""Where the numbers of a vector are put for a loop to read at each of them."""

# --- Operations ---------------------------------------------------------------------------------------------------------


def decompositions(known: Decompositions) -> Decompositions:
    """What operations consist of that inductor would let count from the end.

    Args:
        known: what operations consist of else.
    """
    # What is not known to consist of indexing has loops of its own, which are right from 2.13 on.
    wrong = {operation for operation in kernels.INDEXED if operation in known or torch.__version__ < "2.13"}
    done: list[Tensor] = []  # indices that are as they are to be
    return {
        kernels.embedding_backward: _embedding_backward,
        **{operation: _from_the_start(operation, known.get(operation), done) for operation in wrong},
        **{operation: _from_the_end(known[operation]) for operation in kernels.FILLED},
        **({kernels.embedding: _embedding} if torch.__version__ < "2.13" else {}),
    }


def _from_the_start(  # type: ignore[explicit-any]  # of any arguments
    operation: Callable[..., object], known: Callable[..., object] | None, done: list[Tensor]
) -> Callable[..., object]:
    def decomposed(x: Tensor, axis: int, index: Tensor, *args: object, **options: object) -> object:
        if not any(index is one for one in done):
            index = _never_negative(index, x.shape[axis] if x.ndim else 1)
            done.append(index)
        elif known is None:
            return NotImplemented
        return (known or operation)(x, axis, index, *args, **options)

    return decomposed


def _from_the_end(operation: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any arguments
    def decomposed(x: Tensor, axis: int, index: Tensor, value: object) -> object:
        size = x.shape[axis] if x.ndim else 1
        return operation(x, axis, torch.where(index < 0, index + size, index), value)

    return decomposed


def _never_negative(index: Tensor, size: int) -> Tensor:
    """An index that is the size where it was negative: out of range for any check. The maximum tells inductor its bounds."""
    index = index.long()
    return torch.maximum(torch.where(index < 0, size, 0), index)


def _embedding(weight: Tensor, tokens: Tensor, *_: object) -> Tensor:
    return weight[_never_negative(tokens, weight.shape[0])]


def _embedding_backward(grad: Tensor, tokens: Tensor, vocabulary: int, padding: int, by_count: bool) -> object:
    """Checks the tokens as well: a compiled gradient may be all that is left of a function, without the embedding itself."""
    if by_count:
        return NotImplemented
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    if padding >= 0:
        wide = wide.masked_fill((tokens == padding).unsqueeze(-1), 0)
    zeros = wide.new_zeros(vocabulary, grad.shape[-1])
    return zeros.index_put((_never_negative(tokens, vocabulary),), wide, accumulate=True).to(grad.dtype)


# --- Loops --------------------------------------------------------------------------------------------------------------

CheckBounds: TypeAlias = Callable[["CppKernel", object, object, bool, bool], None]
SetWriteLine: TypeAlias = Callable[..., AbstractContextManager[object]]  # type: ignore[explicit-any]  # of whom, and more from 2.13 on
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


# --- Calls of kernels ---------------------------------------------------------------------------------------------------


def asking(set_writeline: SetWriteLine) -> SetWriteLine:
    """What says who writes the lines that call kernels: each asks whether its kernel refused.

    Args:
        set_writeline: as inductor has it.
    """

    def ask(code: "PythonWrapperCodegen", *args: object) -> AbstractContextManager[object]:
        *before, writeline = args

        def write(line: object) -> None:
            match = _UNCHECKED.fullmatch(line) if isinstance(line, str) else None
            cast("Callable[[object], None]", writeline)(f"AOTI_TORCH_ERROR_CODE_CHECK({match['call']});" if match else line)

        return set_writeline(code, *before, write)

    return ask
