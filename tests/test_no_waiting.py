"""Nothing in a step waits for the device: what waits, or mixes devices, is found on tensors that only say they are on a GPU."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    Fold,
    FunctionLayer,
    GlobalAveragePool,
    Model,
    ReLU,
    Unfold,
    adamw,
    batch_norm,
    chain,
    clip_by_global_norm,
    compose,
    conv2d,
    cross_entropy,
    linear,
    lstm,
    mixed_precision,
    one_hot,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl._common.running import run_backward, run_forward
from fundl.optim.chain import AnyTransform
from tests.fake_cuda import DEVICE, on_device, watched
from tests.loss_samples import SAMPLES as LOSSES
from tests.optimizer_samples import OPTIMIZERS
from tests.samples import SAMPLES, Sample

# Torch's reverse mode looks for the device, which a torch for CPUs alone does not have; so does what torch says of the sizes
# of patches, by indices.
OURS = [
    row for row in SAMPLES if not any(isinstance(record, FunctionLayer | Unfold | Fold) for record in tree.records(row.model))
]


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_layers(row: Sample) -> None:
    model, x = tree.map(_float32, row.model), tree.map(_float32, row.x)
    with watched() as watch:
        layer = on_device(model)
        y, residuals = run_forward(layer, on_device(x))
        run_backward(layer, residuals, y)
    assert not watch.waits


def _float32(leaf: Tensor) -> Tensor:
    return leaf.to(torch.float32) if leaf.is_floating_point() else leaf


def _moved(value: object) -> object:
    return on_device(value) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    row = LOSSES[name]
    with watched() as watch:
        loss = row.loss
        if isinstance(loss, partial):
            loss = partial(loss.func, **{name: _moved(value) for name, value in loss.keywords.items()})
        loss(on_device(row.prediction), on_device(row.target))
    assert not watch.waits


MODELS = {
    "mlp": (compose(linear(8, 16), ReLU(), Dropout(0.1), linear(16, 4)), (5, 8)),
    "images": (compose(conv2d(3, 8, 3), batch_norm(8), ReLU(), GlobalAveragePool(), linear(8, 4)), (5, 3, 8, 8)),
    "transformer": (
        compose(linear(8, 32), *transformer_block(32, 2, causal=True, rotary=1e4, dropout=0.1), linear(32, 4)),
        (5, 7, 8),
    ),
    "recurrent": (compose(lstm(8, 16, bidirectional=True), linear(32, 4)), (5, 7, 8)),
    "mixed": (compose(mixed_precision(linear(8, 16), ReLU()), linear(16, 4)), (5, 8)),
}


def _loss(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = cross_entropy(prediction.flatten(0, -2), target.flatten())
    return value, grad.view_as(prediction)


def _waits(model: Model, shape: tuple[int, ...], optimizer: AnyTransform, *, track: float | None = None) -> list[str]:
    """What two steps, one after the other, and what is measured of them, wait for."""
    with watched() as watch:
        own = on_device(model)
        state = train_state(torch.empty(2, dtype=torch.int64, device=DEVICE), own, optimizer)
        made = len(watch.waits)
        step = train_step(_loss, optimizer, track=track)
        x = torch.empty(shape, device=DEVICE)
        target = torch.empty(shape[:1] if len(shape) != 3 else shape[:2], dtype=torch.int64, device=DEVICE)
        for _ in range(2):
            state, report = step(state, (x, target))
            (report.prediction.argmax(-1) == target).to(torch.float32).mean()
            one_hot(target, 4)
    return watch.waits[made:]


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_models(name: str) -> None:
    model, shape = MODELS[name]
    optimizer = chain(clip_by_global_norm(1.0), adamw(1e-3))
    assert not _waits(model, shape, optimizer, track=0.1 if name == "images" else None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_optimizers(name: str) -> None:
    model, shape = MODELS["mlp"]
    assert not _waits(model, shape, OPTIMIZERS[name])


def test_what_waits_is_found() -> None:
    with watched() as watch:
        x = torch.empty(3, device=DEVICE)
        x + torch.empty(3).to(DEVICE)
        assert watch.waits == ["torch._to_copy"]
        with pytest.raises(RuntimeError):
            float(x.sum())


def test_a_rate_of_0_draws_nothing() -> None:
    counts = []
    for rate in (None, 0.0):
        model = compose(linear(8, 16), *([] if rate is None else [Dropout(rate)]), linear(16, 4))
        optimizer = adamw(1e-3)
        with watched() as watch:
            state = train_state(torch.empty(2, dtype=torch.int64, device=DEVICE), on_device(model), optimizer)
            x, target = torch.empty(5, 8, device=DEVICE), torch.empty(5, dtype=torch.int64, device=DEVICE)
            train_step(cross_entropy, optimizer)(state, (x, target))
        counts.append(len(watch.operations))
    assert counts[0] == counts[1]
