"""The benchmarks for a GPU, with small networks on the CPU."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import on_device
from benchmarks.__main__ import start
from benchmarks.device_cases import CASES, NAMES, Case
from benchmarks.device_worker import Worker, prepare
from benchmarks.on_device import PEERS, Side, disagreements, quartiles, ratio_of, table

EAGER = ("fundl", "fundl-donating", "torch.nn", "torch.nn-autocast")


def _losses(peer: str, case: Case) -> list[float]:
    step = prepare(peer, case, "cpu")
    return [float(step()) for _ in range(3)]  # type: ignore[arg-type]  # a tensor


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("small-")])
def test_sides_compute_the_same(name: str) -> None:
    first, *others = [_losses(peer, CASES[name]) for peer in EAGER]
    assert first[0] > first[1] > first[2]
    tolerance = 2e-3 if CASES[name].is_mixed else 1e-5
    assert others == [pytest.approx(first, rel=tolerance)] * len(others)


def test_a_mixed_case_has_parameters_of_float32_and_logits_of_16_bits() -> None:
    case = CASES["small-blocks-bfloat16"]
    assert {value.dtype for value in case.values()} == {torch.float32}
    x, _ = case.batch()
    assert case.module()(x).shape == (case.rows, case.length, case.tokens)


def test_the_cases_have_as_many_parameters_as_they_say() -> None:
    assert sum(value.numel() for value in CASES["mlp-float32"].values()) == pytest.approx(5.0e6, rel=0.02)
    blocks = CASES["blocks-bfloat16"]
    of_a_block = 12 * blocks.features**2 + 13 * blocks.features
    of_the_ends = blocks.tokens * (2 * blocks.features + 1) + 2 * blocks.features
    assert blocks.blocks * of_a_block + of_the_ends == pytest.approx(163e6, rel=0.01)


def test_a_worker_answers() -> None:
    worker = Worker("fundl", CASES["small-mlp-float32"], "cpu")
    first = worker.answer("first", "2")
    assert len(first["losses"]) == 2
    assert first["first"][0] > 0
    assert worker.answer("time", "0.001")["seconds"][0] > 0
    assert math.isnan(worker.answer("memory")["bytes"][0])
    with pytest.raises(ValueError, match="no such request: sing a song"):
        worker.answer("sing", "a", "song")
    with pytest.raises(ValueError, match="there is no thinc"):
        prepare("thinc", CASES["small-mlp-float32"], "cpu")


def test_who_fails_does_so_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status = on_device.main("cpu", ["small-mlp-float32"], ["fundl", "torch.nn", "thinc"], tmp_path, rounds=2, patience=120)
    assert status == 0
    told = capfd.readouterr().out
    assert "small-mlp-float32: thinc: ValueError: there is no thinc" in told
    assert "ms a step" in told
    found = json.loads((tmp_path / "device.json").read_text())
    sides = {side["peer"]: side for side in found["sides"]}
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert len(sides["fundl"]["losses"]) == on_device.STEPS
    assert len(sides["torch.nn"]["rounds"]) == 2
    assert sides["torch.nn"]["bytes"] is None
    assert sides["thinc"]["failed"]


def test_who_is_not_ready_in_time_is_left_out() -> None:
    found = [*on_device.measured("small-mlp-float32", ["fundl"], "cpu", rounds=1, until=math.inf, patience=0.0)]
    assert [side.failed for side in found] == ["it was not ready in time"]
    late = [*on_device.measured("small-mlp-float32", ["fundl"], "cpu", rounds=1, until=0.0, patience=9.0)]
    assert [side.failed for side in late] == ["there was no time left"]


def _side(peer: str, losses: Sequence[float], rounds: Sequence[float] = ()) -> Side:
    return Side("small-mlp-float32", peer, losses, 1.0, rounds)


def test_losses_that_disagree_are_told() -> None:
    sides = [_side("fundl", [2.0, 1.0]), _side("torch.nn", [2.0, 1.0005]), _side("jax", [2.0, 1.1])]
    assert [*disagreements(sides)] == [
        "small-mlp-float32: jax's first losses are 2.00000, 1.10000, but those of fundl 2.00000, 1.00000"
    ]
    assert len([*disagreements([_side("fundl", [2.0]), _side("jax", [math.nan])])]) == 1
    assert not [*disagreements([Side("small-mlp-float32", "jax", failed="it has no GPU")])]


def test_ratios_are_of_times_of_one_round() -> None:
    ours, theirs = _side("fundl-jit", [], [1.0, 2.0, 4.0]), _side("jax", [], [2.0, 3.0, 2.0])
    assert ratio_of(theirs, ours) == 1.5
    assert quartiles([1.0]) == [1.0, 1.0, 1.0]
    assert table("small-mlp-float32", [ours, theirs, Side("small-mlp-float32", "fundl", failed="no")]).row_count == 3
    assert set(PEERS.values()) <= set(PEERS)


def test_the_command_line_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["--device", "cuda", "--names"]) == 0
    assert capsys.readouterr().out.split() == NAMES
    assert start(["--device", "cuda", "--case", "disk"]) == 2
    assert "there is no case disk, but blocks-bfloat16" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert start(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
