"""Loops that run a compiled graph many times, with the state in place: in C where possible, else in Python.

The graph gets the state as one tensor for each dtype, its leaves one behind the other: with a tensor for each leaf, calls would
take longer than the arithmetic of a small network. The loop in C calls only functions of torch's stable C interface, by
pointers, so that it needs neither headers nor libraries, and compiles in a moment.
"""

import ctypes
import hashlib
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._compiling import inductor
from fundl._compiling.cache_keys import TensorSpec, spec_of
from fundl._compiling.programs import Interface

Tensors: TypeAlias = Sequence[Tensor]


@attrs.frozen(eq=False, kw_only=True)
class Plan(Interface):
    """What a loop is over; its result is the report of one step."""

    state: Sequence[TensorSpec]  # its leaves
    batch: Sequence[TensorSpec]  # likewise of one batch
    reports: Sequence[TensorSpec] = ()  # the tensors of one step's report

    @property
    def devices(self) -> list[torch.device]:
        """Those of all tensors."""
        specs = [*self.state, *self.batch, *map(spec_of, self.constants), *self.reports]
        return [device for _, _, device in specs]

    @property
    def groups(self) -> list[tuple[torch.dtype, torch.device]]:
        """The dtypes and devices of the tensors that hold the state, in the order of the graph's inputs."""
        return [*dict.fromkeys((dtype, device) for dtype, _, device in self.state)]

    @property
    def sizes(self) -> list[int]:
        """How many numbers each of them has."""
        return [sum(self._numbers(group)) for group in self.groups]

    def _numbers(self, group: tuple[torch.dtype, torch.device]) -> list[int]:
        return [torch.Size(shape).numel() for dtype, shape, device in self.state if (dtype, device) == group]

    def joined(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that hold some leaves."""
        pairs = [*zip(leaves, self.state, strict=True)]
        return [torch.cat([leaf.reshape(-1) for leaf, spec in pairs if spec[::2] == group]) for group in self.groups]

    def leaves(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """The leaves, as parts of what holds them."""
        parts = {
            group: iter(tensor.split_with_sizes(self._numbers(group)))
            for group, tensor in zip(self.groups, joined, strict=True)
        }
        return [next(parts[dtype, device]).view(shape) for dtype, shape, device in self.state]


class Loop(Protocol):
    """Runs a graph so many times."""

    def __call__(self, before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        """Run it.

        Args:
            before: the leaves of the state; they stay as they are.
            batches: their tensors, with the steps along the first axis.
            after: tensors like the leaves, for those of the state after the last step.
            reports: tensors for those of the reports, with the steps along the first axis.
            steps: how many.

        All tensors are contiguous.
        """


def python_loop(run: inductor.Run, plan: Plan) -> Loop:
    """The loop in Python."""

    def loop(before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        state = plan.joined(before)
        for number in range(steps):
            run([*state, *(x[number] for x in batches), *plan.constants, *(x[number] for x in reports)])
        for leaf, new in zip(after, plan.leaves(state), strict=True):
            leaf.copy_(new)

    return loop


# --- In C ---------------------------------------------------------------------------------------------------------------

_SOURCE: Final = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef void* tensor_t;
typedef int32_t (*run_t)(void*, tensor_t*, size_t, tensor_t*, size_t, void*, void*);
typedef int32_t (*make_t)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, tensor_t*);
typedef int32_t (*share_t)(tensor_t, tensor_t*);
typedef int32_t (*view_t)(tensor_t, int64_t, const int64_t*, const int64_t*, int64_t, tensor_t*);
typedef int32_t (*drop_t)(tensor_t);
typedef struct { int64_t group, offset, bytes; } leaf_t;
typedef struct { int64_t axes, sizes, step, dtype; } input_t;  // where its sizes are among the numbers, before its strides
typedef struct {
  void* model; run_t run; make_t make; share_t share; view_t view; drop_t drop;
  int64_t groups, leaves, inputs;
  const int64_t* bytes;
  const leaf_t* leaf;
  const input_t* input;
  const int64_t* numbers;
} loop_t;

static int32_t steps_of(const loop_t* loop, int64_t steps, tensor_t* whole, tensor_t* handles) {
  for (int64_t i = 0; i < steps; i++) {
    for (int64_t j = 0; j < loop->inputs; j++) {
      const input_t* in = loop->input + j;
      const int64_t *sizes = loop->numbers + in->sizes, *strides = sizes + in->axes;
      int32_t error = in->step < 0 ? loop->share(whole[j], handles + j)
          : loop->view(whole[j], in->axes, sizes, strides, i * in->step, handles + j);
      if (error) return error;
    }
    int32_t error = loop->run(loop->model, handles, loop->inputs, NULL, 0, NULL, NULL);
    if (error) return error;
  }
  return 0;
}

extern "C" int32_t fundl_loop(const loop_t* loop, int64_t steps, char** pointers) {
  const int64_t one = 1, n = loop->inputs;
  const int32_t cpu = 0;
  char **before = pointers, **after = pointers + loop->leaves, **data = after + loop->leaves;
  char** memory = (char**)calloc(2 * loop->groups + 1, sizeof(char*));
  tensor_t* whole = (tensor_t*)calloc(2 * n + 1, sizeof(tensor_t));
  int32_t error = memory && whole ? 0 : 1;
  char** state = memory + loop->groups;
  for (int64_t j = 0; j < loop->groups && !error; j++) {
    memory[j] = (char*)malloc(loop->bytes[j] + 64);
    state[j] = memory[j] + (64 - (uintptr_t)memory[j] % 64);
    error = memory[j] ? 0 : 1;
  }
  for (int64_t j = 0; j < loop->leaves && !error; j++)
    memcpy(state[loop->leaf[j].group] + loop->leaf[j].offset, before[j], loop->leaf[j].bytes);
  for (int64_t j = 0; j < n && !error; j++) {
    const input_t* in = loop->input + j;
    void* start = j < loop->groups ? state[j] : data[j - loop->groups];
    const int64_t *sizes = loop->numbers + in->sizes, *strides = sizes + in->axes, size = in->step * steps;
    error = in->step < 0 ? loop->make(start, in->axes, sizes, strides, 0, in->dtype, cpu, 0, whole + j)
        : loop->make(start, 1, &size, &one, 0, in->dtype, cpu, 0, whole + j);
  }
  if (!error) error = steps_of(loop, steps, whole, whole + n);
  for (int64_t j = 0; j < loop->leaves && !error; j++)
    memcpy(after[j], state[loop->leaf[j].group] + loop->leaf[j].offset, loop->leaf[j].bytes);
  for (int64_t j = 0; whole && j < n; j++) if (whole[j]) loop->drop(whole[j]);
  for (int64_t j = 0; memory && j < loop->groups; j++) free(memory[j]);
  free(memory);
  free(whole);
  return error;
}
"""

VERSION: Final = hashlib.sha256(_SOURCE.encode()).hexdigest()
"""A digest of the loop: when it changes, it is compiled anew."""

LIBRARY: Final = "loop.bin"  # beside the graph's library, which is found by its ending


def build_loop(folder: Path) -> None:
    """Compile the loop into a folder that `compile_graph` filled.

    Raises:
        CompilerError: it cannot be compiled.
    """
    command = [inductor.cpp_compiler(), "-x", "c++", "-O2", "-shared", "-fPIC", "-o", str(folder / LIBRARY), "-"]
    try:
        done = subprocess.run(command, input=_SOURCE.encode(), check=False, capture_output=True)
    except OSError as error:
        raise inductor.CompilerError(f"the loop over its steps cannot be compiled ({error})") from error
    if done.returncode:
        reason = next(reversed(done.stderr.decode(errors="replace").splitlines()), "no message")
        raise inductor.CompilerError(f"the loop over its steps cannot be compiled ({' '.join(command)}: {reason})")


class _Loop(ctypes.Structure):
    """`loop_t`."""

    _fields_ = (  # type: ignore[mutable-override]  # it is not changed
        *((name, ctypes.c_void_p) for name in ("model", "run", "make", "share", "view", "drop")),
        *((name, ctypes.c_int64) for name in ("groups", "leaves", "inputs")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("bytes", "leaf", "input", "numbers")),
    )


def c_loop(folder: Path, plan: Plan) -> Loop | None:
    """The loop over a graph in a folder that `build_loop` filled; None if the graph needs more than torch's C interface."""
    if any("metadata" not in file.name for file in folder.glob("*.json")):  # kernels that only the runner can call
        return None
    model, torch_cpu = ctypes.CDLL(str(next(folder.glob("*.so")))), ctypes.CDLL(_torch_library())
    container = ctypes.c_void_p()
    if model.AOTInductorModelContainerCreateWithDevice(ctypes.byref(container), ctypes.c_size_t(1), b"cpu", None):
        return None
    functions = (
        model.AOTInductorModelContainerRunSingleThreaded,
        torch_cpu.aoti_torch_create_tensor_from_blob,
        torch_cpu.aoti_torch_new_tensor_handle,
        torch_cpu.aoti_torch__reinterpret_tensor,
        torch_cpu.aoti_torch_delete_tensor_object,
    )
    addresses = [ctypes.cast(function, ctypes.c_void_p) for function in functions]
    sizes = [size * dtype.itemsize for size, (dtype, _) in zip(plan.sizes, plan.groups, strict=True)]
    tables, described = (sizes, [*_leaves(plan)], list[int](), list[int]()), [*_inputs(plan)]
    for dtype, shape, strides, step in described:
        number = getattr(torch_cpu, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
        tables[2].extend((len(shape), len(tables[3]), step, number))
        tables[3].extend((*shape, *strides))
    counts = len(sizes), len(plan.state), len(described)
    c = _Loop(container, *addresses, *counts, *((ctypes.c_int64 * len(table))(*table) for table in tables))
    run: Callable[..., int] = ctypes.CDLL(str(folder / LIBRARY)).fundl_loop  # type: ignore[explicit-any]  # of what `argtypes` says
    count, lock = 2 * len(plan.state) + len(described) - len(sizes), threading.Lock()
    pointers, constants = ctypes.c_void_p * count, [tensor.data_ptr() for tensor in plan.constants]
    address = Tensor.data_ptr

    def loop(before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        first, last = map(address, itertools.chain(before, after, batches)), map(address, reports)
        given = pointers(*first, *constants, *last)
        with lock:
            error = run(ctypes.byref(c), ctypes.c_int64(steps), given)
        if error:
            raise RuntimeError("the compiled step failed; torch has written the reason to standard error")

    weakref.finalize(loop, model.AOTInductorModelContainerDelete, container).atexit = False
    return loop


def _leaves(plan: Plan) -> Iterator[int]:
    """The `leaf_t` of each leaf of the state."""
    ends = dict.fromkeys(plan.groups, 0)
    for dtype, shape, device in plan.state:
        size = torch.Size(shape).numel() * dtype.itemsize
        yield from (plan.groups.index((dtype, device)), ends[dtype, device], size)
        ends[dtype, device] += size


def _inputs(plan: Plan) -> "Iterator[tuple[torch.dtype, Sequence[int], Sequence[int], int]]":
    """The graph's inputs, in their order: dtypes, shapes, strides, and how far it is from one step's to the next one's."""

    def row(spec: TensorSpec) -> "tuple[torch.dtype, Sequence[int], Sequence[int], int]":
        dtype, shape, _ = spec
        return dtype, shape, torch.empty(shape, device="meta").stride(), torch.Size(shape).numel()

    yield from ((dtype, [size], [1], _WHOLE) for size, (dtype, _) in zip(plan.sizes, plan.groups, strict=True))
    yield from map(row, plan.batch)
    yield from ((tensor.dtype, tensor.shape, tensor.stride(), _WHOLE) for tensor in plan.constants)
    yield from map(row, plan.reports)


_WHOLE: Final = -1  # it is the same for all steps


def _torch_library() -> str:
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    return str(Path(torch.__file__).parent / "lib" / name)
