"""The library of a compiled graph: its entry, what it does to denormal numbers, and what it shows while it is made."""

import gc
import io
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import adam, apply, initialize, jit, key, linear, lstm, mse, random, scan, train_state, train_step
from fundl._compiling import library

DENORMAL: Final = 7.5e-39
"""In float32; twice as much is a normal number."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))


def halved(x: Tensor) -> Tensor:
    return x * 0.5


def has_own_entry(folder: Path) -> bool:
    return bool([*folder.glob(f"libraries/*/{library.FILE}")])


# --- The entry --------------------------------------------------------------------------------------------------------


def test_what_is_returned_has_memory_of_its_own(tmp_path: Path) -> None:
    compiled = jit(lambda x: (x.t(), x[0], x.view(-1), x * 2, x.sum(1, keepdim=True).expand(3, 4)))
    for start in (0.0, 5.0):
        x = torch.arange(12.0).view(3, 4) + start
        expected = x.t().clone(), x[0].clone(), x.reshape(-1).clone(), x * 2, x.sum(1, keepdim=True).expand(3, 4)
        result = compiled(x)
        del x
        gc.collect()
        others = [torch.full((3, 4), 7.0) for _ in range(20)]
        assert all(map(torch.equal, result, expected))
        assert len(others) == 20
    assert has_own_entry(tmp_path)


def test_nothing_given_and_nothing_computed(tmp_path: Path) -> None:
    assert torch.equal(jit(lambda: torch.ones(3) * 2)(), torch.full((3,), 2.0))
    assert jit(lambda _x: ())(torch.ones(2)) == ()
    assert torch.equal(jit(lambda x: x.sum())(torch.ones(0, 3)), torch.zeros(()))
    assert has_own_entry(tmp_path)


def test_kernels_of_torch_are_called_with_tensors_and_in_loops_with_memory(tmp_path: Path) -> None:
    model = initialize(key(0), linear(300, 200))  # large enough for the BLAS
    step, state = train_step(mse, adam(0.1)), train_state(key(1), model, adam(0.1))
    batches = random.normal(key(2), (3, 64, 300)), random.normal(key(3), (3, 64, 200))
    expected = state
    for batch in zip(*batches, strict=True):
        expected, _ = step(expected, batch)
    after, _ = scan(step)(state, batches)
    torch.testing.assert_close(after.model.weight, expected.model.weight, rtol=1e-4, atol=1e-5)
    assert has_own_entry(tmp_path)


def test_operators_that_only_the_container_can_call(tmp_path: Path) -> None:
    model = initialize(key(0), lstm(3, 2))
    x = random.normal(key(1), (4, 5, 3))
    torch.testing.assert_close(jit(apply)(model, x), apply(model, x))
    assert not has_own_entry(tmp_path)


@pytest.mark.parametrize("broken", ["another name", "another language"])
def test_code_of_another_form_is_left_to_the_container(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a torch may write it that is not known yet."""
    if broken == "another name":
        monkeypatch.setattr(library, "_RUN", re.compile("not to be found"))
    else:
        monkeypatch.setattr(library, "_forms", lambda _inputs: ["this is not C++"])
    assert torch.equal(jit(halved)(torch.ones(3)), torch.full((3,), 0.5))
    assert not has_own_entry(tmp_path)


def test_an_error_within_says_what_it_is() -> None:
    def picked(table: Tensor, index: Tensor) -> Tensor:
        return table[index]

    compiled, table = jit(picked), torch.arange(10.0)
    assert torch.equal(compiled(table, torch.tensor([1, 2])), table[1:3])
    (call,) = compiled._calls
    with pytest.raises(RuntimeError, match="an index is out of range"):
        call((table, torch.tensor([1, 20])), {})
    with pytest.raises(IndexError, match="index 20 is out of bounds"):  # what the function itself says
        compiled(table, torch.tensor([1, 20]))


def test_other_threads_go_on_meanwhile() -> None:
    def long(x: Tensor) -> Tensor:
        return (torch.sin(x) * torch.exp(x)).sum()

    compiled, x = jit(long), torch.rand(5_000_000)
    compiled(x)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(1e-5)

    before, after, interval = 0, 0, sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nothing but the call itself lets the other thread go on
    thread = threading.Thread(target=count)
    try:
        thread.start()
        before = counted[0]
        for _ in range(100):  # the other thread may have to wait for a processor as well
            compiled(x)
            if (after := counted[0]) > before:
                break
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert after > before


def test_many_threads_run_one_program() -> None:
    compiled = jit(lambda x: (x * 2, (x @ x.t()).sum()))
    x = torch.rand(40, 30)
    expected, wrong = compiled(x), list[int]()

    def run(number: int) -> None:
        for _ in range(200):
            if not all(map(torch.equal, compiled(x), expected)):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Denormal numbers -------------------------------------------------------------------------------------------------


def kept(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How many numbers that are denormal a function keeps; eager torch keeps all, also after it."""
    result = int(call(x).count_nonzero())
    assert int((x * 0.5).count_nonzero()) == x.numel()
    return result


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_zero_on_each_thread(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kept(jit(halved), torch.full((200_000,), 2 * DENORMAL)) == 0
        assert kept(jit(lambda x: x.double().mul(1e-308).mul(0.1)), torch.ones(200_000)) == 0
    finally:
        torch.set_num_threads(before)


def test_denormal_numbers_are_zero_in_loops_and_in_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return state * 0.5 + 0 * x, state.sum()

    after, _ = scan(step)(torch.full((5,), 2 * DENORMAL), torch.zeros(3, 5))
    assert not after.any()
    assert has_own_entry(tmp_path)
    monkeypatch.setattr(library, "_INPUTS", re.compile("not to be found"))
    assert kept(jit(lambda x: x.mul(0.5).add(0)), torch.full((7,), 2 * DENORMAL)) == 0


def test_a_setting_of_the_user_is_put_back() -> None:
    compiled, x = jit(halved), torch.full((5,), 2 * DENORMAL)
    torch.set_flush_denormal(True)
    try:
        assert not compiled(x).any()
        assert not halved(x).any()
    finally:
        torch.set_flush_denormal(False)
    assert not compiled(x).any()
    assert halved(x).all()


# --- Waiting ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, elsewhere = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", terminal)
    jit(halved)(torch.ones(3))
    shown, blank, end = terminal.getvalue().split("\r")
    assert shown == "compiling halved: 1 operation, about 2 s"
    assert (blank, end) == (" " * len(shown), "")
    jit(halved)(torch.ones(3))  # from disk
    assert terminal.getvalue().count("compiling") == 1
    monkeypatch.setattr(sys, "stderr", elsewhere)
    jit(halved)(torch.ones(4))
    assert not elsewhere.getvalue()


ASKED: Final = """
import subprocess

from fundl._compiling import inductor

asked, run = [], subprocess.run


def noted(command, **options):
    asked.append(str(command))
    return run(command, **options)


subprocess.run = noted
assert len(inductor._best_instruction_set()) == 1
assert any("-fsyntax-only" in command for command in asked)
assert not any("-shared" in command for command in asked)  # nothing is compiled
"""


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="elsewhere inductor knows without trying")
def test_instruction_sets_are_asked_of_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", ASKED], check=True)
