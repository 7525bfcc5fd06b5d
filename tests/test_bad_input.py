"""Bad input of every kind is answered by one sentence: what was given, where, and what to write instead."""

import functools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import fundl
from fundl import (
    Epoch,
    Evaluation,
    Layer,
    ReLU,
    compose,
    ensemble,
    initialize,
    key,
    linear,
    mse,
    save,
    sgd,
    split,
    train_state,
    train_step,
)
from tests.bad_input import Row, applied, backward, compiling, data, files, layers, losses, optimizers, steps, training, trees

ROWS: tuple[Row, ...] = tuple(
    row
    for family in (layers, applied, backward, losses, optimizers, data, training, steps, compiling, files, trees)
    for row in family.ROWS
)


@functools.cache
def made(model: Layer[torch.Tensor] | tuple[Layer[torch.Tensor], ...]) -> object:
    return initialize(key(0), model)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """What the programs may use."""
    folder: Path = tmp_path_factory.mktemp("files")
    model, optimizer = initialize(key(0), compose(linear(2, 8), ReLU(), linear(8, 1))), sgd(0.1)
    x, target, models = torch.ones(4, 2), torch.zeros(4, 1), ensemble.initialize(split(key(0), 2), linear(2, 1))
    save(folder / "model.safetensors", model)
    (folder / "text.txt").write_text("hello")
    public: dict[str, object] = {name: getattr(fundl, name) for name in fundl.__all__}  # type: ignore[attr-defined]  # not for checkers
    return public | {
        "fundl": fundl,
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
        "nan": float("nan"),
        "inf": float("inf"),
        "made": made,
        "run": list,
        "model": model,
        "optimizer": optimizer,
        "x": x,
        "target": target,
        "labels": torch.tensor([0, 1, 0, 1]),
        "scores": torch.zeros(4, 2),
        "images": torch.ones(2, 3, 8, 8),
        "tokens": torch.zeros(2, 5, dtype=torch.int64),
        "sequence": torch.ones(2, 5, 4),
        "state": train_state(key(1), model, optimizer),
        "step": train_step(mse, optimizer),
        "batches": [(x, target)],
        "keys": split(key(0), 2),
        "models": models,
        "many": ensemble.train_state(split(key(0), 2), models, optimizer),
        "estep": ensemble.train_step(mse, optimizer),
        "folder": folder,
        "epoch": Epoch(1, 10, Evaluation(0.7), None, 0.1),
    }


@pytest.mark.parametrize(("program", "error", "sentence"), ROWS, ids=[program for program, _, _ in ROWS])
def test_a_mistake_is_answered_by_a_sentence(
    names: Mapping[str, object], program: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        eval(program, dict(names))
    assert sentence in str(caught.value)


def test_there_are_many_kinds_of_mistakes() -> None:
    assert len(ROWS) >= 200
    assert len({program for program, _, _ in ROWS}) == len(ROWS)
