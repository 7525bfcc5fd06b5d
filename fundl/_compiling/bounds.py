"""Indices out of range in compiled loops: an error after the loop, not within.

Inductor's loops check the indices that they read, and throw at once. If a loop runs on several threads, that ends the process
(pytorch#195402). So the loop sets a flag and reads at 0 instead, and throws when all threads are done.

Inductor lets a negative index count from the end, as indexing does, where the operation itself refuses it: in `index_select`
and `index_add` (pytorch#185885), to 2.12 in embeddings and `gather` as well (pytorch#183608). To 2.12, gradients of embeddings
are written to any place in memory; to 2.13, the error of a `scatter` whose kernel is called is lost (pytorch#190909).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import torch
from torch import Tensor

from fundl._common import graph_operations, kernels
from fundl._compiling.corrections import replaced
from fundl._compiling.graphs import Decompositions

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
    """Decompositions of the operations whose negative indices inductor gets wrong, from those that are known."""
    # Operations that are not decomposed have loops of their own, which are right from 2.13 on.
    wrong = {operation for operation in graph_operations.INDEXED if operation in known or torch.__version__ < "2.13"}
    done: list[Tensor] = []  # indices that are as they are to be
    return {
        kernels.embedding_backward: _embedding_backward,
        **{operation: _from_the_start(operation, known.get(operation), done) for operation in wrong},
        **{operation: _from_the_end(known[operation]) for operation in graph_operations.FILLED},
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

_CheckBounds: TypeAlias = Callable[["CppKernel", object, object, bool, bool], None]
_CodegenGroup: TypeAlias = Callable[["KernelGroup", str | None], str]
_SetWriteline: TypeAlias = Callable[..., AbstractContextManager[object]]  # type: ignore[explicit-any]  # of whom, and more from 2.13 on


@contextmanager
def thrown_after_loops() -> Iterator[None]:
    """Have inductor write loops that set a flag, and throw after they end; and check whether kernels that it calls refused."""
    from torch._inductor.codegen.cpp import CppKernel, KernelGroup
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    with (
        replaced(CppKernel, "check_bounds", _setting_flag(CppKernel.check_bounds)),
        replaced(KernelGroup, "codegen_group", _throwing(KernelGroup.codegen_group)),
        replaced(PythonWrapperCodegen, "set_writeline", _checking(PythonWrapperCodegen.set_writeline)),
    ):
        yield


def _setting_flag(check_bounds: _CheckBounds) -> _CheckBounds:
    """Inductor's writer of the check of an index, but that the check sets the flag instead of throwing."""

    def write(kernel: "CppKernel", index: object, size: object, lower: bool, upper: bool) -> None:
        if not re.fullmatch(r"tmp\d+", str(index)):  # one that is the same for all values
            check_bounds(kernel, index, size, lower, upper)
            return
        asserted: Callable[..., str] = kernel.indirect_assert  # type: ignore[explicit-any]  # of arguments that are handed on

        def flagged(*args: object) -> str:
            match = _ASSERTION.fullmatch(asserted(*args))
            assert match is not None, "torch writes its assertions in another way"
            in_arrays = re.findall(_ARRAY.format(vector=index), kernel.compute.getvalue())
            zeros = " ".join([f"{index} = decltype({index})(0);", *(f"{array}.fill(0);" for array in in_arrays)])
            return f"if (!({match['condition']})) [[unlikely]] {{ {_FLAG}.store(true); {zeros} }}"

        with replaced(kernel, "indirect_assert", flagged):
            check_bounds(kernel, index, size, lower, upper)

    return write


def _throwing(codegen_group: _CodegenGroup) -> _CodegenGroup:
    """Inductor's writer of a function of loops, which throws at its end if a loop has set the flag."""

    def write(group: "KernelGroup", name: str | None = None) -> str:
        code = codegen_group(group, name)
        if _FLAG not in code:
            return code
        start, end = code.index("\n{\n") + 3, code.rindex("}")
        throw = f'if ({_FLAG}.load()) throw std::out_of_range("an index is out of range");'
        body = f"    std::atomic<bool> {_FLAG}{{false}};\n{code[start:end]}    {throw}\n"
        return f"#include <stdexcept>\n{code[:start]}{body}{code[end:]}"

    return write


def _checking(set_writeline: _SetWriteline) -> _SetWriteline:
    """Inductor's choice of what writes the lines that call kernels: each line checks whether its kernel refused."""

    def choose(code: "PythonWrapperCodegen", *args: object) -> AbstractContextManager[object]:
        *before, writeline = args

        def write(line: object) -> None:
            match = _UNCHECKED.fullmatch(line) if isinstance(line, str) else None
            cast("Callable[[object], None]", writeline)(f"AOTI_TORCH_ERROR_CODE_CHECK({match['call']});" if match else line)

        return set_writeline(code, *before, write)

    return choose
