"""Functions in ONNX files: what they compute, what they are called, what they say of themselves, and what cannot become one."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

import fundl_onnx
from fundl import (
    Dropout,
    Layer,
    Model,
    ReLU,
    Tanh,
    adam,
    adamw,
    apply,
    compose,
    cosine_schedule,
    initialize,
    key,
    linear,
    load,
    minibatches,
    mse,
    random,
    sgd,
    train_state,
    train_step,
    tree,
)
from fundl._common.running import run_backward, run_forward
from fundl.interop import onnx
from tests.exported import worst
from tests.optimizer_samples import OPTIMIZERS
from tests.samples import SAMPLES, Sample

pytest.importorskip("onnx", reason="onnx is not installed, of the extra onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, of the extra onnx")

DISK: Final = initialize(key(0), compose(linear(2, 5), Tanh(), linear(5, 2)))
X, Y = random.normal(key(2), (7, 2)), random.normal(key(3), (7, 2))


# --- A step, in and out --------------------------------------------------------------------------------------------------


def test_a_step_trains_with_any_number_of_rows(tmp_path: Path) -> None:
    optimizer = adamw(cosine_schedule(0.01, 30))
    model = initialize(key(0), compose(linear(2, 5), ReLU(), Dropout(0.2), linear(5, 2)))
    step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
    onnx.export_step(tmp_path / "disk.onnx", step, state, (X, Y))
    run = onnx.load(tmp_path / "disk.onnx", like=step(state, (X, Y)))
    mine = other = state
    for rows in (7, 5, 2, 6):
        batch = X[:rows], Y[:rows]
        (mine, report), (other, expected) = run(mine, batch), step(other, batch)
        assert worst((mine, report), (other, expected)) < 1e-5
    again = load(tmp_path / "disk.safetensors", state)
    assert tree.equal(again, state)


def test_names_and_metadata(tmp_path: Path) -> None:
    step, state = train_step(mse, sgd(0.1)), train_state(key(1), DISK, sgd(0.1))
    onnx.export_step(tmp_path / "disk.onnx", step, state, (X, Y))
    function = fundl_onnx.load(tmp_path / "disk.onnx")
    assert function.arguments == ["state", "batch"]
    assert function.results == ["next.state", "report"]
    assert function.inputs[:2] == ["state.model.0.weight", "state.model.0.bias"]
    assert function.inputs[-2:] == ["batch.0", "batch.1"]
    contents = function.contents
    assert contents["carried"]["next.state.model.2.bias"] == "state.model.2.bias"
    assert contents["same"] == {"next.state.key": "state.key"}
    (size,) = contents["sizes"]
    assert (size["name"], size["least"]) == ("rows", 2)
    assert sorted(map(tuple, size["axes"])) == [("batch.0", 0), ("batch.1", 0)]
    assert function.metadata["fundl.format"] == "1"
    import onnx as peer

    model = peer.load(str(tmp_path / "disk.onnx"))
    assert model.ir_version == 10
    assert [opset.version for opset in model.opset_import] == [18]
    assert {"next.state.model.0.weight", "report.loss"} <= {output.name for output in model.graph.output}


def test_a_model_has_its_parameters_inside(tmp_path: Path) -> None:
    onnx.export_apply(tmp_path / "disk.onnx", DISK, X)
    run = onnx.load(tmp_path / "disk.onnx", like=X)
    assert run.function.inputs == ["x"]
    for rows in (7, 3, 100):
        x = random.normal(key(rows), (rows, 2))
        assert worst(run(x), apply(DISK, x)) < 1e-6
    import onnx as peer

    assert "model.0.weight" in {tensor.name for tensor in peer.load(str(tmp_path / "disk.onnx")).graph.initializer}


def test_the_rate_as_an_input(tmp_path: Path) -> None:
    def step(state: tuple[Model, Tensor], rate: Tensor) -> tuple[Model, Tensor]:
        model, x = state
        return tree.map(lambda leaf: leaf - rate.to(leaf.dtype) * leaf, model), x

    rate = torch.tensor(0.5, dtype=torch.float64)
    onnx.export(tmp_path / "decay.onnx", step, (DISK, X), rate, results=("next.model", "x"))
    run = onnx.load(tmp_path / "decay.onnx", like=(DISK, X))
    assert worst(run((DISK, X), rate / 2), step((DISK, X), rate / 2)) < 1e-6


# --- Without torch -------------------------------------------------------------------------------------------------------

WITHOUT_TORCH: Final = """
import sys
sys.modules["torch"] = sys.modules["fundl"] = None  # importing either is an error
import numpy
import fundl_onnx
step = fundl_onnx.load(sys.argv[1])
state = step.read(sys.argv[2])
x, y = (numpy.load(path) for path in sys.argv[3:])
as_tree = step.tree(state)
for rows in (7, 5, 7):
    outputs = step.run({**state, "batch.0": x[:rows], "batch.1": y[:rows]})
    state = step.following(outputs)
    as_tree, report = step(as_tree, (x[:rows], y[:rows]))
    assert (report["loss"] == outputs["report.loss"]).all()
    print(float(outputs["report.loss"]))
"""


def test_a_step_trains_without_torch(tmp_path: Path) -> None:
    optimizer = adam(0.01)
    step, state = train_step(mse, optimizer), train_state(key(1), DISK, optimizer)
    onnx.export_step(tmp_path / "disk.onnx", step, state, (X, Y))
    import numpy as np

    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.numpy())
    names = ("disk.onnx", "disk.safetensors", "x.npy", "y.npy")
    command = [sys.executable, "-c", WITHOUT_TORCH, *(str(tmp_path / name) for name in names)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert ran.returncode == 0, ran.stderr
    losses: list[float] = []
    for rows in (7, 5, 7):
        state, report = step(state, (X[:rows], Y[:rows]))
        losses.append(report.loss.item())
    assert [*map(float, ran.stdout.split())] == pytest.approx(losses, rel=1e-5)


# --- What cannot be ------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Spectrum(Layer[Tensor]):
    """A layer of a user's own that does what ONNX lacks."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigvalsh(x @ x.mT), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Spectrum", Tensor]:
        raise NotImplementedError


def test_what_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(onnx.ExportError, match=r"there is no ONNX for _?linalg_eigh.*in a Spectrum, at .*test_onnx.py:\d+"):
        onnx.export_apply(tmp_path / "no.onnx", compose(Tanh(), Spectrum()), torch.eye(3), free=())
    assert not [*tmp_path.iterdir()]


def test_sizes_that_are_asked_for(tmp_path: Path) -> None:
    def halves(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x * 3

    onnx.export(tmp_path / "halves.onnx", halves, X, free="x")
    run = onnx.load(tmp_path / "halves.onnx", like=X)
    assert worst(run(X[:5]), X[:5] * 2) == 0
    with pytest.raises(ValueError, match=r"x has 3 rows, but the file was made for at least 5"):
        run(X[:3])

    def seven(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 7 else x * 3

    with pytest.raises(ValueError, match=r"the rows of x cannot be free: the function asks whether that size is 7"):
        onnx.export(tmp_path / "seven.onnx", seven, X, free="x")
    with pytest.raises(ValueError, match="must be 2 or more in the example"):
        onnx.export(tmp_path / "one.onnx", halves, X[:1], free="x")


def test_rows_that_are_free_are_put_in_order(tmp_path: Path) -> None:
    def some(key: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        order = random.permutation(key, x.shape[0])[:3]
        return x.index_select(0, order), y.index_select(0, order)

    onnx.export(tmp_path / "some.onnx", some, key(0), X, Y, free=("x", "y"))
    run = onnx.load(tmp_path / "some.onnx", like=(X, Y))
    for rows in (3, 4, 1000):
        x = random.normal(key(rows), (rows, 2))
        assert worst(run(key(5), x, -x), some(key(5), x, -x)) == 0

    def epoch(key: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(minibatches(key, x, 2))

    onnx.export(tmp_path / "epoch.onnx", epoch, key(0), X)
    assert worst(onnx.load(tmp_path / "epoch.onnx", like=epoch(key(0), X))(key(5), X), epoch(key(5), X)) == 0
    with pytest.raises(ValueError, match=r"the rows of x cannot be free: the function asks whether that size is 7"):
        onnx.export(tmp_path / "batches.onnx", epoch, key(0), X, free="x")


def test_wrong_arguments_of_what_is_loaded(tmp_path: Path) -> None:
    onnx.export_apply(tmp_path / "disk.onnx", DISK, X)
    run = onnx.load(tmp_path / "disk.onnx")
    with pytest.raises(TypeError, match=r"x must be of float32, not float64: array.astype\('float32'\)"):
        run(X.double().numpy())
    with pytest.raises(ValueError, match=r"x must be of shape \(rows, 2\), not \(7, 1\)"):
        run(X[:, :1].numpy())
    with pytest.raises(TypeError, match="the function takes x, not 2 arguments"):
        run(X.numpy(), X.numpy())
    with pytest.raises(TypeError, match="x must be an array, not a dict of a"):
        run({"a": X.numpy()})
    with pytest.raises(TypeError, match="like is not of the structure"):
        onnx.load(tmp_path / "disk.onnx", like=(X, X))


def test_wrong_arguments_of_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"free is to name parameters of the function, x, not y"):
        onnx.export(tmp_path / "no.onnx", lambda x: x, X, free="y")
    with pytest.raises(TypeError, match=r"here is torch\.bfloat16"):
        onnx.export_apply(tmp_path / "no.onnx", tree.cast_to(DISK, torch.bfloat16), X.bfloat16())
    with pytest.raises(ValueError, match=r"two tensors would be called x\.a\.b"):
        onnx.export(tmp_path / "no.onnx", lambda x: x["a.b"], {"a.b": X, "a": {"b": X}})
    with pytest.raises(TypeError, match=r"the function must return a tuple of next\.x, y"):
        onnx.export(tmp_path / "no.onnx", lambda x: x, X, results=("next.x", "y"))


# --- All layers, and all optimizers --------------------------------------------------------------------------------------


def out_and_grads(model: Model, x: object, grad: object) -> tuple[object, object]:
    output, residuals = run_forward(model, x)
    return output, run_backward(model, residuals, grad)


ROUNDED: Final = {"LSTM, learned state, deep, mask"}
"""Rows with a gradient that is a small sum of large terms: in float32 it agrees to 1e-4 alone, and in float64 to 1e-12."""


def check_sample(sample: Sample, path: Path, *, free: bool, dtype: torch.dtype = torch.float32) -> None:
    """Forward, and all gradients."""
    bound = 1e-12 if dtype is torch.float64 else 1e-4 if sample.name in ROUNDED else 1e-5
    model, x = tree.cast_to((sample.model, sample.x), dtype)
    output, _ = run_forward(model, x)
    keys = iter(random.split(key(3), 100))
    grad = tree.map(lambda leaf: random.normal(next(keys), tuple(leaf.shape)).to(leaf.dtype), output)
    expected = out_and_grads(model, x, grad)
    onnx.export(path, out_and_grads, model, x, grad, free=("x", "grad") if free else ())
    run = onnx.load(path, like=expected)
    assert worst(run(model, x, grad), expected) < bound
    if free and (rows := tree.leaves(x)[0].shape[0]) > run.function.contents["sizes"][0]["least"]:
        x, grad = tree.map(lambda leaf: leaf[: rows - 1], (x, grad))
        assert worst(run(model, x, grad), out_and_grads(model, x, grad)) < bound


def samples() -> list[Sample]:
    return [sample for sample in SAMPLES if torch.float32 in sample.tolerances]


@pytest.mark.slow
@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_every_layer(sample: Sample, tmp_path: Path) -> None:
    check_sample(sample, tmp_path / "layer.onnx", free=False)
    if sample.batched:
        check_sample(sample, tmp_path / "free.onnx", free=True)
    if sample.name in ROUNDED:
        check_sample(sample, tmp_path / "double.onnx", free=False, dtype=torch.float64)


QUICK: Final = ("Linear", "LayerNorm", "MaxPool2d", "LSTM", "Attend")


@pytest.mark.parametrize("name", QUICK)
def test_some_layers(name: str, tmp_path: Path) -> None:
    sample = next(sample for sample in samples() if type(sample.model).__name__ == name)
    check_sample(sample, tmp_path / "layer.onnx", free=sample.batched)


PARAMS: Final = (random.normal(key(0), (3, 5)), {"a": random.normal(key(1), (5,)), "b": random.normal(key(2), ())})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    optimizer, params = OPTIMIZERS[name], tree.cast_to(PARAMS, dtype)
    state = optimizer.init(params)
    grads = tree.map(torch.ones_like, params)
    onnx.export(tmp_path / "step.onnx", optimizer.step, grads, state, params, results=("next.params", "next.state"))
    run = onnx.load(tmp_path / "step.onnx", like=(params, state))
    mine = other = params, state
    for number in range(100):
        seeds = iter(random.split(random.fold_in(key(3), number), 3))
        grads = tree.map(lambda leaf: random.normal(next(seeds), tuple(leaf.shape), dtype=dtype), params)  # noqa: B023
        mine, other = run(grads, mine[1], mine[0]), optimizer.step(grads, other[1], other[0])
    assert worst(mine, other) < (1e-4 if dtype is torch.float32 else 1e-10)
