"""Whole training steps in ONNX files: models of all kinds, which train to the numbers of fundl, in float32 and float64."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    GELU,
    AdaptiveAveragePool2d,
    AveragePool2d,
    Dropout,
    Flatten,
    MaxPool2d,
    Mish,
    Model,
    ReLU,
    SiLU,
    Tanh,
    adam,
    batch_norm,
    binary_cross_entropy_with_logits,
    compose,
    conv2d,
    cross_entropy,
    embedding,
    group_norm,
    gru,
    initialize,
    key,
    layer_norm,
    linear,
    lstm,
    momentum,
    mse,
    random,
    residual,
    rms_norm,
    sgd,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl.interop import onnx
from fundl.optim.chain import AnyTransform
from tests.exported import worst

pytest.importorskip("onnx", reason="onnx is not installed, of the extra onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, of the extra onnx")

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ROWS: Final = 7


def of_tokens(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all positions of all sequences."""
    value, grad = cross_entropy(prediction.reshape(-1, prediction.shape[-1]), target.reshape(-1))
    return value, grad.reshape(prediction.shape)


def mixed(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses, the one of the first output, the other of the second."""
    (a, grad_a), (b, grad_b) = (
        mse(prediction[:, :1], target[:, :1]),
        binary_cross_entropy_with_logits(prediction[:, 1:], target[:, 1:]),
    )
    return a + 0.5 * b, torch.cat((grad_a, 0.5 * grad_b), 1)


def blocks(dropout: float) -> Model:
    some = [transformer_block(16, 2, causal=True, rotary=10_000.0, dropout=dropout) for _ in range(2)]
    return compose(embedding(10, 16), *some, layer_norm(16), linear(16, 10))


POINTS: Final = random.normal(key(9), (ROWS, 2))
LABELS: Final = random.bernoulli(key(10), (ROWS, 2), probability=0.5).float()
IMAGES: Final = random.normal(key(9), (ROWS, 1, 12, 12))
DIGITS: Final = random.randint(key(8), (ROWS,), low=0, high=5)
TOKENS: Final = random.randint(key(8), (ROWS, 6), low=0, high=10)

MODELS: Final[Mapping[str, tuple[Callable[[], Model], Tensor, Tensor, Loss]]] = {
    "perceptron": (lambda: compose(linear(2, 25), Tanh(), linear(25, 25), ReLU(), linear(25, 2)), POINTS, LABELS, mse),
    "dropout": (lambda: compose(linear(2, 25), ReLU(), Dropout(0.2), linear(25, 2)), POINTS, LABELS, mse),
    "mixed losses": (lambda: compose(linear(2, 25), Tanh(), linear(25, 2)), POINTS, LABELS, mixed),
    "layer norm": (lambda: compose(linear(2, 25), layer_norm(25), SiLU(), linear(25, 2)), POINTS, LABELS, mse),
    "residual": (
        lambda: compose(linear(2, 16), residual(rms_norm(16), linear(16, 16), Mish()), linear(16, 2)), POINTS, LABELS, mse,
    ),
    "max pooling": (
        lambda: compose(conv2d(1, 6, 3), ReLU(), MaxPool2d(2), conv2d(6, 8, 3), ReLU(), Flatten(), linear(72, 5)),
        IMAGES, DIGITS, cross_entropy,
    ),
    "batch norm, average pooling": (
        lambda: compose(  # a bias before batch norm has a gradient of rounding errors alone, of which Adam makes steps
            conv2d(1, 6, 3, stride=2, bias=False), batch_norm(6), ReLU(), AveragePool2d(2), Flatten(), linear(24, 5),
        ),
        IMAGES, DIGITS, cross_entropy,
    ),
    "group norm": (
        lambda: compose(conv2d(1, 8, 3), group_norm(4, 8), GELU(), AdaptiveAveragePool2d(2), Flatten(), linear(32, 5)),
        IMAGES, DIGITS, cross_entropy,
    ),
    "LSTM": (lambda: compose(embedding(10, 8), lstm(8, 16), linear(16, 10)), TOKENS, TOKENS, of_tokens),
    "two LSTMs, dropout": (
        lambda: compose(embedding(10, 8), lstm(8, 16), Dropout(0.3), lstm(16, 16), linear(16, 10)), TOKENS, TOKENS, of_tokens,
    ),
    "GRU": (lambda: compose(embedding(10, 8), gru(8, 16), linear(16, 10)), TOKENS, TOKENS, of_tokens),
    "transformer": (lambda: blocks(0.0), TOKENS, TOKENS, of_tokens),
    "transformer, dropout": (lambda: blocks(0.1), TOKENS, TOKENS, of_tokens),
}  # fmt: skip
QUICK: Final = ("dropout", "max pooling", "LSTM")
OPTIMIZERS: Final[Mapping[str, AnyTransform]] = {"sgd": sgd(0.05), "momentum": momentum(0.01), "adam": adam(0.001)}


def check(
    name: str, optimizer: AnyTransform, path: Path, *, free: bool, steps: int, dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """How far the losses, and the states after some steps, of the file and of fundl are apart."""
    make, x, y, loss = MODELS[name]
    model, batch = tree.cast_to((initialize(key(5), make()), (x, y)), dtype)
    step, state = (
        train_step(loss, optimizer, track=0.1 if "batch norm" in name else None),
        train_state(key(3), model, optimizer),
    )
    if "batch norm" in name:
        state, _ = step(state, batch)  # the first makes the statistics
    onnx.export_step(path, step, state, batch, free="batch" if free else ())
    run = onnx.load(path, like=step(state, batch))
    mine = other = state
    losses = 0.0
    for number in range(steps):
        rows = ROWS if number % 3 or not free else ROWS - 2
        part = tree.map(lambda leaf: leaf[:rows], batch)  # noqa: B023
        (mine, found), (other, expected) = run(mine, part), step(other, part)
        losses = max(losses, worst(found.loss, expected.loss))
    return losses, worst(mine.model, other.model)


@pytest.mark.parametrize("name", QUICK)
def test_some_models(name: str, tmp_path: Path) -> None:
    losses, models = check(name, sgd(0.05), tmp_path / "step.onnx", free=True, steps=10)
    assert losses < 1e-5
    assert models < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("free", [True, False], ids=["any rows", "seven rows"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, optimizer: str, free: bool, tmp_path: Path) -> None:
    losses, models = check(name, OPTIMIZERS[optimizer], tmp_path / "step.onnx", free=free, steps=100)
    rounded = (name, optimizer) == ("max pooling", "momentum")  # where rounding grows most: to 1.6e-5
    assert losses < (2e-5 if rounded else 1e-5)
    assert models < (1e-5 if optimizer == "sgd" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["perceptron", "mixed losses", "layer norm", "residual", "LSTM", "GRU", "transformer"])
def test_models_in_float64(name: str, optimizer: str, tmp_path: Path) -> None:
    losses, _ = check(name, OPTIMIZERS[optimizer], tmp_path / "step.onnx", free=True, steps=100, dtype=torch.float64)
    assert losses < 1e-10


def test_what_onnxruntime_lacks_in_float64(tmp_path: Path) -> None:
    with pytest.raises(onnx.ExportError, match=r"onnxruntime has no convolution in float64, in a Conv2d, at .*: export"):
        check("max pooling", sgd(0.1), tmp_path / "step.onnx", free=True, steps=1, dtype=torch.float64)
