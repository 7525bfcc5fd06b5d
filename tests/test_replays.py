"""Replays of programs, with a stand-in for the graphs of a GPU: it keeps what was launched, and launches it again."""

import threading
from collections.abc import Callable, Hashable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import adam, compose, cross_entropy, initialize, jit, key, linear, scan, train_state, train_step, tree
from fundl._compiling import cuda, loops, replays
from fundl._compiling.inductor import Run
from fundl._compiling.replays import Replayed
from fundl._compiling.torch_settings import torch_settings


@attrs.define(eq=False)
class StandIn:
    """Captures a run as a function that runs it again; as on a GPU, capturing runs nothing."""

    stream: Hashable | None = 1
    error: str = ""

    def place(self) -> Hashable | None:
        return self.stream

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        if self.error:
            raise RuntimeError(self.error)
        return run


def add(tensors: list[Tensor]) -> list[Tensor]:
    """A program: the state grows by the batch, and its sum is reported."""
    state, batch, report = tensors
    state.add_(batch)
    report.copy_(state.sum())
    return []


def program(graphs: StandIn) -> Replayed:
    return Replayed(add, fixed=[0], written=[2], graphs=graphs)


def called(run: Run, state: Tensor, number: float) -> float:
    report = torch.empty(())
    run([state, torch.full((3,), number), report])
    return float(report)


def test_calls_are_replayed_where_the_state_stays() -> None:
    run, state = program(StandIn()), torch.zeros(3)
    found = [called(run, state, number) for number in (1, 2, 3, 4, 5)]
    assert found == [3, 9, 18, 30, 45]
    assert (run.captures, run.replays, run.reason) == (1, 3, "")


def test_another_state_runs_as_it_is_and_is_then_captured() -> None:
    run, first, second = program(StandIn()), torch.zeros(3), torch.zeros(3)
    for number in (1, 1, 1):
        called(run, first, number)
    assert [called(run, second, 2) for _ in range(4)] == [6, 12, 18, 24]
    assert (run.captures, run.replays) == (2, 3)
    assert called(run, first, 1) == 12


def test_states_that_come_and_go_are_given_up() -> None:
    run = program(StandIn())
    states = [torch.zeros(3) for _ in range(6)]
    for state in states:
        assert [called(run, state, 1) for _ in range(4)] == [3, 6, 9, 12]
    assert run.captures == 4
    assert run.reason == "4 states were given one after the other, each at other addresses"


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    run, state = program(StandIn(error="operation not permitted\nwhen stream is capturing")), torch.zeros(3)
    called(run, state, 1)
    called(run, state, 1)
    with pytest.warns(RuntimeWarning, match=r"without a CUDA graph: a call cannot be captured \(operation not permitted\)"):
        assert called(run, state, 1) == 9
    assert called(run, state, 1) == 12
    assert run.replays == 0


def test_another_stream_and_a_capture_of_the_users_run_as_they_are() -> None:
    graphs, state = StandIn(), torch.zeros(3)
    run = program(graphs)
    for _ in range(4):
        called(run, state, 1)
    for graphs.stream in (2, None):
        assert called(run, state, 1) > 0
    assert run.replays == 2
    graphs.stream = 1
    assert called(run, state, 1) == 21
    assert run.replays == 3


def test_no_reference_to_the_state_is_kept() -> None:
    import sys

    run, state = program(StandIn()), torch.zeros(3)
    before = sys.getrefcount(state)
    run.graphs = Forgetting()
    for _ in range(4):
        called(run, state, 1)
    assert sys.getrefcount(state) == before


class Forgetting(StandIn):
    """As on a GPU: a graph knows addresses, and holds no tensor."""

    @override
    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        run()
        return lambda: None


def test_a_batch_whose_numbers_share_memory_is_not_captured() -> None:
    run, state = program(StandIn()), torch.zeros(3)
    with pytest.warns(RuntimeWarning, match="numbers of a tensor share their memory"):
        [run([state, torch.ones(1).expand(3), torch.empty(())]) for _ in range(4)]
    assert state.tolist() == [4, 4, 4]


def test_threads_wait_for_each_other() -> None:
    run, state = program(StandIn()), torch.zeros(3)
    threads = [threading.Thread(target=lambda: [called(run, state, 1) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.tolist() == [200, 200, 200]


def test_only_what_is_on_one_gpu_is_replayed() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert isinstance(replays.replayed(add, [gpu, gpu, gpu], [0], [2]), Replayed)
    for devices in ([cpu, cpu, cpu], [gpu, cpu, gpu], [gpu, torch.device("cuda", 1), gpu]):
        assert replays.replayed(add, devices, [0], [2]) is add
    assert replays.replayed(add, [gpu, gpu, gpu], [], [2]) is add


# --- Steps of training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """All programs are replayed, by the stand-in."""
    made: list[Replayed] = []

    def replay(run: Run, _devices: object, fixed: list[int], written: range) -> Run:
        made.append(Replayed(run, fixed, written, StandIn()))
        return made[-1]

    monkeypatch.setattr(replays, "replayed", replay)
    return made


@pytest.mark.usefixtures("interpreted")
def test_a_donated_step_is_replayed_with_the_same_numbers(replayed: list[Replayed]) -> None:
    model, optimizer = initialize(key(0), compose(linear(4, 8), linear(8, 3))), adam(0.01)
    step = train_step(cross_entropy, optimizer)
    compiled, state, own = jit(step, donate="state"), *(train_state(key(1), model, optimizer) for _ in range(2))
    own = tree.map(torch.clone, own)
    for number in range(6):
        batch = torch.full((5, 4), float(number)), torch.arange(5) % 3
        state, report = step(state, batch)
        own, mine = compiled(own, batch)
        torch.testing.assert_close(report.loss, mine.loss)
    (run,) = replayed
    assert run.replays == 4
    torch.testing.assert_close([*tree.leaves(state)], [*tree.leaves(own)])


@pytest.mark.usefixtures("interpreted_loop")
@pytest.mark.parametrize("inference", [False, True])
def test_a_scan_is_replayed_with_the_same_numbers(replayed: list[Replayed], inference: bool) -> None:
    model, optimizer = initialize(key(0), compose(linear(4, 8), linear(8, 3))), adam(0.01)
    step = train_step(cross_entropy, optimizer)
    state, batches = train_state(key(1), model, optimizer), (torch.ones(5, 2, 4), torch.zeros(5, 2, dtype=torch.long))
    epoch = scan(step)
    with torch.inference_mode(inference):  # as in `fit`
        after, reports = epoch(*epoch(state, batches)[:1], batches)
    own, losses = state, list[Tensor]()
    for _ in range(10):
        own, report = step(own, tree.map(lambda leaf: leaf[0], batches))
        losses.append(report.loss)
    torch.testing.assert_close(reports.loss, torch.stack(losses[5:]))
    torch.testing.assert_close([*tree.leaves(after)], [*tree.leaves(own)])
    assert replayed[0].replays == 8


def test_loops_are_of_replays_only_where_there_are_some() -> None:
    plan = loops.Plan(state=[(torch.float32, (3,), torch.device("cpu"))], batch=[])
    assert "_loop_in_place" not in repr(loops.python_loop(add, plan))


# --- Cache keys ----------------------------------------------------------------------------------------------------------


def test_the_number_of_a_gpu_is_no_part_of_a_key() -> None:
    one, other = (f"placeholder x float32 cuda:{n}\nfull {{'device': device(type='cuda', index={n})}}" for n in (0, 3))
    assert cuda.without_number(one) == cuda.without_number(other) != one
    both = f"{one}\n{other}"
    assert cuda.without_number(both) == both


@pytest.mark.skipif(torch.version.cuda is None and not hasattr(torch._C, "_get_fp32_precision_getter"), reason="an old torch")
def test_precision_is_a_part_of_keys_with_a_gpu() -> None:
    before = torch.get_float32_matmul_precision()
    exact, alone = torch_settings(on_gpu=True), torch_settings()
    try:
        torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
        assert torch_settings(on_gpu=True) != exact
        assert torch_settings() == alone
        assert "precision of products on a GPU" in torch_settings(on_gpu=True).explain(exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "_homes", lambda: iter([tmp_path]))
    monkeypatch.setattr(cuda, "_of_wheels", lambda: iter([]))
    with pytest.raises(cuda.MissingError, match=r"needs CUDA's headers \(cuda.h, .*set CUDA_HOME to its folder"):
        cuda._headers()
    for name in ("cuda.h", "cuda_runtime.h", "crt/host_config.h"):
        (tmp_path / "include" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "include" / name).touch()
    assert cuda._headers() == (tmp_path / "include").resolve()
    monkeypatch.setattr(cuda, "_SYSTEM", ())
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with pytest.raises(cuda.MissingError, match=r"the driver's library, libcuda\.so"):
        cuda._driver()
