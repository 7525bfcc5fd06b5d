"""AOTInductor packages: what they compute, what they are called, what they say of themselves, and what cannot become one."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

import fundl
from fundl import (
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Model,
    ReLU,
    Tanh,
    TraceError,
    adam,
    adamw,
    apply,
    batch_norm,
    compose,
    conv2d,
    cosine_schedule,
    cross_entropy,
    embedding,
    initialize,
    key,
    layer_norm,
    linear,
    lstm,
    mse,
    random,
    sgd,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl._compiling import inductor
from fundl.interop import aoti
from fundl.interop._call import call_of
from fundl.interop.aoti import exporting
from fundl.optim.chain import AnyTransform
from tests.exported import worst
from tests.optimizer_samples import OPTIMIZERS

needs_a_compiler: Final = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no g++")

DISK: Final = initialize(key(0), compose(linear(2, 5), Tanh(), linear(5, 2)))
X, Y = random.normal(key(2), (7, 2)), random.normal(key(3), (7, 2))


# --- A step, in and out --------------------------------------------------------------------------------------------------


@needs_a_compiler
@pytest.mark.slow
def test_a_step_trains_with_any_number_of_rows(tmp_path: Path) -> None:
    optimizer = adamw(cosine_schedule(0.01, 30))
    model = initialize(key(0), compose(linear(2, 5), ReLU(), Dropout(0.2), linear(5, 2)))
    step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
    aoti.export_step(tmp_path / "disk.pt2", step, state, (X, Y))
    assert {file.name for file in tmp_path.iterdir()} == {"disk.pt2", "disk.safetensors"}
    assert tree.equal(fundl.load(tmp_path / "disk.safetensors", state), state)

    run = aoti.load(tmp_path / "disk.pt2", like=step(state, (X, Y)))
    mine = other = state
    for rows in (7, 5, 2, 6):
        batch = X[:rows], Y[:rows].t().contiguous().t()  # in another order in memory
        (mine, report), (other, expected) = run(mine, batch), step(other, batch)
        assert worst((mine, report), (other, expected)) < 1e-5

    assert run.inputs[:2] == ["state.model.0.weight", "state.model.0.bias"]
    assert run.inputs[-2:] == ["batch.0", "batch.1"]
    assert {"next.state.model.0.weight", "next.state.step", "report.loss", "report.prediction"} < {*run.outputs}
    assert run.contents["carried"]["next.state.model.3.bias"] == "state.model.3.bias"
    assert run.contents["same"] == {"next.state.key": "state.key"}
    assert (run.contents["sizes"][0]["name"], run.contents["sizes"][0]["least"]) == ("rows", 2)
    assert repr(run) == "PackagedFunction(from state, batch to next.state, report)"

    with pytest.raises(ValueError, match=r"batch.0 has 1 rows, but the file was made for at least 2"):
        run(state, (X[:1], Y[:1]))
    with pytest.raises(TypeError, match=r"batch.0 must be of torch.float32, not torch.float64: tensor.to\(torch.float32\)"):
        run(state, (X.double(), Y))
    with pytest.raises(ValueError, match=r"batch.0 must be of shape \(rows, 2\), not \(7, 1\)"):
        run(state, (X[:, :1], Y))
    with pytest.raises(TypeError, match="the function takes state, batch, not 1 arguments"):
        run(state)
    with pytest.raises(TypeError, match=r"the function needs state.model.0.weight, .* as well"):
        run.run({"batch.0": X})
    with pytest.raises(TypeError, match=r"like is what the function returns, next.state, report, not"):
        aoti.load(tmp_path / "disk.pt2", like=state)
    with pytest.raises(
        TypeError, match=r"like is not of the structure that the package's function returns: look at next.state"
    ):
        aoti.load(tmp_path / "disk.pt2", like=(X, X))


# --- Names, and what cannot be -------------------------------------------------------------------------------------------


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes of a function before it is compiled, and what is written of it, takes no compiler."""

    def compile_nothing(_graph: object, _examples: object, folder: Path, _held: Mapping[int, Tensor]) -> None:
        (folder / "of.wrapper_metadata.json").write_text("{}")

    monkeypatch.setattr(inductor, "compile_package", compile_nothing)


@attrs.frozen(eq=False)
class Doubled(Layer[None]):
    """A layer of a user's own that calls an operation that only Python knows."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return doubled(x), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Doubled", Tensor]:
        return self, doubled(grad)


def _doubled(x: Tensor) -> Tensor:
    return x * 2


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x)


doubled: Final = torch.library.custom_op("fundl_tests::doubled", _doubled, mutates_args=())
doubled.register_fake(_like)


@pytest.mark.usefixtures("not_compiled")
def test_what_no_program_in_cpp_has_is_named(tmp_path: Path) -> None:
    message = r"a program in C\+\+ lacks fundl_tests::doubled, in a Doubled, at .*test_aoti.py:\d+"
    with pytest.raises(aoti.ExportError, match=message):
        aoti.export_apply(tmp_path / "no.pt2", compose(Tanh(), Doubled()), X)
    with pytest.raises(TraceError, match=r"asks for the value of a tensor, at .*test_aoti.py"):
        aoti.export(tmp_path / "no.pt2", lambda x: x * 2 if x.sum() > 0 else x, X)
    with pytest.raises(TraceError, match=r"draws random numbers from a hidden state, at .*test_aoti.py"):
        aoti.export(tmp_path / "no.pt2", lambda x: x + torch.rand(2), X)
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("not_compiled")
def test_wrong_arguments_of_export(tmp_path: Path) -> None:
    path = tmp_path / "no.pt2"
    with pytest.raises(ValueError, match=r"no.so is to be a package, which torch opens if it ends in .pt2"):
        aoti.export(tmp_path / "no.so", torch.neg, X)
    with pytest.raises(ValueError, match=r"free is to name parameters of the function, x, not y"):
        aoti.export(path, lambda x: x * 2, X, free="y")
    with pytest.raises(ValueError, match=r'free is "x" or \(\)'):
        aoti.export_apply(path, DISK, X, free="model")
    with pytest.raises(ValueError, match=r"the rows of x cannot be free: the function asks whether that size is 7"):
        aoti.export(path, lambda x: x * 2 if x.shape[0] == 7 else x, X, free="x")
    with pytest.raises(ValueError, match="must be 2 or more in the example"):
        aoti.export(path, lambda x: x * 2, X[:1], free="x")
    with pytest.raises(ValueError, match=r"two tensors would be called x\.a\.b"):
        aoti.export(path, lambda x: x, {"a.b": X, "a": {"b": X}})
    with pytest.raises(ValueError, match=r"two tensors would be called result\.a\.b"):
        aoti.export(path, lambda x: {"a.b": x * 2, "a": {"b": x * 3}}, X)
    with pytest.raises(TypeError, match=r"the function must return a tuple of next\.x, y"):
        aoti.export(path, lambda x: x * 2, X, results=("next.x", "y"))
    with pytest.raises(TypeError, match="an exported function returns a tensor at least"):
        aoti.export(path, lambda _x: (), X)
    with pytest.raises(FileNotFoundError, match=r"there is no .*no\.pt2"):
        aoti.load(path, like=X)
    assert not [*tmp_path.iterdir()]


def metadata(function: Callable[[Tensor], object], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The outputs that a package has, and what it says is an input as it was."""
    described = exporting._compiled(call_of(function, (X,), (), "result"), folder)
    return described["fundl.outputs"].split("\n"), json.loads(described["fundl.function"])["same"]


@pytest.mark.usefixtures("not_compiled")
def test_what_is_handed_on_is_no_output_unless_there_is_no_other(tmp_path: Path) -> None:
    constant = torch.ones(2)
    assert metadata(lambda x: (x, x * 2), tmp_path) == (["result.1"], {"result.0": "x"})
    assert metadata(lambda x: x, tmp_path) == (["result"], {})
    assert metadata(lambda x: [x, constant], tmp_path) == (["result.1"], {"result.0": "x"})

    def twice(x: Tensor) -> dict[str, Tensor]:
        y = x + 1
        return {"a": y, "b": y, "c": y.t()}

    assert metadata(twice, tmp_path) == (["result.a", "result.b", "result.c"], {})


# --- Functions and models of all kinds -----------------------------------------------------------------------------------


@needs_a_compiler
@pytest.mark.slow
def test_results_of_all_forms(tmp_path: Path) -> None:
    constant = torch.arange(20.0).reshape(4, 5)

    def function(x: Tensor) -> dict[str, object]:
        y = x + 1
        return {
            "same": x,
            "twice": (y, y),
            "view": y.t(),
            "of_input": x.t(),
            "constant": constant,
            "whole": x.long(),
            "text": "as it is",
        }

    aoti.export(tmp_path / "forms.pt2", function, X, free="x")
    run = aoti.load(tmp_path / "forms.pt2", like=function(X))
    for x in (X, X[:3] * 2):
        assert worst(run(x), function(x)) == 0
        assert all(leaf.is_contiguous() for leaf in tree.leaves(run(x)))


@needs_a_compiler
@pytest.mark.slow
def test_a_model_has_its_parameters_inside(tmp_path: Path) -> None:
    transposed = tree.map(lambda leaf: leaf.t().contiguous().t() if leaf.ndim == 2 else leaf, DISK)
    aoti.export_apply(tmp_path / "disk.pt2", transposed, X)
    run = aoti.load(tmp_path / "disk.pt2", like=X)
    assert run.inputs == ["x"]
    for rows in (7, 3, 100):
        x = random.normal(key(rows), (rows, 2))
        assert worst(run(x), apply(DISK, x)) < 1e-6


@needs_a_compiler
@pytest.mark.slow
def test_an_index_out_of_range_is_an_error(tmp_path: Path) -> None:
    table = initialize(key(0), embedding(5, 3))
    aoti.export_apply(tmp_path / "table.pt2", table, torch.tensor([0, 4]))
    run = aoti.load(tmp_path / "table.pt2", like=torch.ones(2, 3))
    assert worst(run(torch.tensor([3, 1, 2])), apply(table, torch.tensor([3, 1, 2]))) == 0
    with pytest.raises(RuntimeError):
        run(torch.tensor([3, 5, 2]))


def of_tokens(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all positions of all sequences."""
    value, grad = cross_entropy(prediction.reshape(-1, prediction.shape[-1]), target.reshape(-1))
    return value, grad.reshape(prediction.shape)


IMAGES: Final = random.normal(key(4), (7, 1, 8, 8))
CLASSES: Final = torch.tensor([0, 2, 1, 1, 0, 2, 2])
TOKENS: Final = random.randint(key(5), (7, 6), low=0, high=10)

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
STEPS: Final[Mapping[str, tuple[Model, Loss, AnyTransform, float | None, Tensor, Tensor]]] = {
    "half": (compose(linear(2, 40), ReLU(), Dropout(0.1), linear(40, 2)), mse, adam(0.01), None, X.bfloat16(), Y.bfloat16()),
    "double": (compose(linear(2, 5), Tanh(), linear(5, 2)), mse, adam(0.01), None, X.double(), Y.double()),
    "images": (
        compose(conv2d(1, 4, 3), batch_norm(4), ReLU(), MaxPool2d(2), Flatten(), linear(36, 3)),
        cross_entropy, sgd(0.1), 0.1, IMAGES, CLASSES,
    ),
    "sequences": (compose(embedding(10, 8), lstm(8, 8), linear(8, 10)), of_tokens, adam(0.01), None, TOKENS, TOKENS),
    "tokens": (
        compose(embedding(10, 16), transformer_block(16, 2, causal=True, dropout=0.1), layer_norm(16), linear(16, 10)),
        of_tokens, sgd(0.1), None, TOKENS, TOKENS,
    ),
}  # fmt: skip


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_steps_of_all_kinds(name: str, tmp_path: Path) -> None:
    model, loss, optimizer, track, x, y = STEPS[name]
    dtype = x.dtype if x.is_floating_point() else torch.float32
    model = initialize(key(0), model, dtype=dtype)
    step, state = train_step(loss, optimizer, track=track), train_state(key(1), model, optimizer)
    if track is not None:  # from the first step on, there are statistics
        state, _ = step(state, (x, y))
    rows: Sequence[int] = (7,) * 6
    if name == "sequences":  # each step of which is written out, for so many rows
        aoti.export_step(tmp_path / "step.pt2", step, state, (x, y), free=())
    else:
        aoti.export_step(tmp_path / "step.pt2", step, state, (x, y))
        rows = (7, 5, 2, 6, 7, 3)
    run = aoti.load(tmp_path / "step.pt2", like=step(state, (x, y)))
    mine = other = state
    for count in rows:
        batch = x[:count], y[:count]
        (mine, report), (other, expected) = run(mine, batch), step(other, batch)
        bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        assert worst((mine, report), (other, expected)) < bound


PARAMS: Final = (random.normal(key(0), (3, 5)), {"a": random.normal(key(1), (5,)), "b": random.normal(key(2), ())})


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str, tmp_path: Path) -> None:
    optimizer, params = OPTIMIZERS[name], tree.cast_to(PARAMS, torch.float64)
    state, grads = optimizer.init(params), tree.map(torch.ones_like, params)
    aoti.export(tmp_path / "step.pt2", optimizer.step, grads, state, params, results=("next.params", "next.state"))
    run = aoti.load(tmp_path / "step.pt2", like=(params, state))
    mine = other = params, state
    for number in range(20):
        seeds = iter(random.split(random.fold_in(key(3), number), 3))
        grads = tree.map(lambda leaf: random.normal(next(seeds), tuple(leaf.shape), dtype=leaf.dtype), params)  # noqa: B023
        mine, other = run(grads, mine[1], mine[0]), optimizer.step(grads, other[1], other[0])
    assert worst(mine, other) < 1e-10
