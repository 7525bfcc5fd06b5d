"""PyTorch's own samples of its optimizers, as oracles: what has a counterpart agrees, and what torch refuses is refused.

The samples and error inputs are those of `torch.testing._internal.common_optimizers`. What is not run is in the tables below,
with the reason: a class, a sample or an error that is neither run nor listed fails a test.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol, cast

import pytest
import torch
from torch import Tensor

from fundl import Rate, adagrad, adam, adamw, apply_updates, chain, rmsprop, scale, sgd
from fundl.optim.chain import AnyTransform

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that its samples do


# --- The samples -------------------------------------------------------------------------------------------------------


class Sample(Protocol):
    """What an optimizer is made with."""

    params: object
    kwargs: Mapping[str, object]
    desc: str


class ErrorSample(Protocol):
    """What an optimizer refuses, and how."""

    optimizer_error_input: Sample


class Info(Protocol):
    """An optimizer and its samples."""

    optim_cls: Callable[..., torch.optim.Optimizer]  # type: ignore[explicit-any]  # of any of them

    def optim_inputs_func(self, device: str) -> Sequence[Sample]: ...

    def optim_error_inputs_func(self, device: str, dtype: torch.dtype) -> Sequence[ErrorSample]: ...


def database() -> Sequence[Info]:
    from torch.testing._internal.common_optimizers import optim_db  # it takes seconds to import

    return cast("Sequence[Info]", optim_db)  # torch's tests have no types


# --- The counterparts --------------------------------------------------------------------------------------------------

WITHOUT_COUNTERPART: Final = {
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adamax",
    "LBFGS",
    "Muon",
    "NAdam",
    "RAdam",
    "Rprop",
    "SparseAdam",
}
"""Written by nobody yet, as a transform of one's own is some lines; LBFGS calls the loss again, which no transform does."""

NOT_REFUSED: Final = {
    "invalid param type": "a tensor is a tree of one leaf",
    "a param group cannot have duplicate parameters": "params are values: what is in two places of a tree is two leaves",
    "duplicate parameters should not occur across param groups either": "as above; and there are no groups",
    "all optimizer params should be with/without names": "the places of a tree are its names",
    "all optimizer param groups should be with/without names.": "as above",
    "lr as Tensor doesn't work with foreach & not capturable": "a schedule gives tensors, whatever the kernels",
}
"""What torch refuses, and has no meaning here."""


@pytest.mark.parametrize("kwargs", [{"weight_decay": -1}, {"betas": (1.0, 0.0)}, {"lr": -0.1}], ids=str)
def test_a_counterpart_reads_what_torch_reads(kwargs: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        counterpart("Adam", kwargs)


def counterpart(name: str, kwargs: Mapping[str, object]) -> AnyTransform:
    """Our optimizer of torch's arguments, of which none may be left."""
    left = dict(kwargs)
    maximize = left.pop("maximize", False)
    left.pop("foreach", None)  # only says which kernels
    words = {"lr": "rate", "eps": "epsilon", "alpha": "decay", "lr_decay": "rate_decay", "initial_accumulator_value": "initial"}
    given = {words.get(word, word): value for word, value in left.items() if word != "betas"}
    if "betas" in left:
        betas = left["betas"]
        assert isinstance(betas, tuple)
        given["beta1"], given["beta2"] = betas
    make, default = MAKERS[name]
    rate = given.pop("rate", default)
    optimizer = make(scheduled(rate), **given)
    return chain(scale(-1.0), optimizer) if maximize else optimizer


def scheduled(rate: object) -> Rate:
    """A rate; a tensor, which may change from step to step, is a schedule."""
    if isinstance(rate, Tensor):
        return lambda _count: rate
    assert isinstance(rate, float | int)
    return rate


Maker = Callable[..., AnyTransform]  # type: ignore[explicit-any]  # their arguments differ
MAKERS: Final[Mapping[str, tuple[Maker, float]]] = {
    "SGD": (sgd, 1e-3),
    "Adam": (adam, 1e-3),
    "AdamW": (adamw, 1e-3),
    "RMSprop": (rmsprop, 1e-2),
    "Adagrad": (adagrad, 1e-2),
}
"""Ours, and torch's default of the learning rate."""


def of_counterparts() -> Iterator[tuple[str, Info]]:
    for info in database():
        name = str(info.optim_cls.__name__)
        if name not in WITHOUT_COUNTERPART:
            yield name, info


def draw(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes: Sequence[Sequence[int]] = ((10, 5), (10,), (), (2, 0))
    return tuple(torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)


# --- The tests ---------------------------------------------------------------------------------------------------------


def test_every_optimizer_of_torchs_is_run_or_listed() -> None:
    names = [str(info.optim_cls.__name__) for info in database()]
    assert set(names) == {*MAKERS, *WITHOUT_COUNTERPART}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_sample_agrees(dtype: torch.dtype) -> None:
    seen: Counter[str] = Counter()
    for name, info in of_counterparts():
        for sample in info.optim_inputs_func(device="cpu"):
            params = draw(0, dtype)
            leaves = [leaf.clone().requires_grad_() for leaf in params]
            peer, ours = info.optim_cls(leaves, **sample.kwargs), counterpart(name, sample.kwargs)
            state, updated = ours.init(params), params
            updated_state = state
            for seed in range(1, 21):
                grads = draw(seed, dtype)
                for leaf, grad in zip(leaves, grads, strict=True):
                    leaf.grad = grad.clone()
                peer.step()
                params, state = ours.step(grads, state, params)
                updates, updated_state = ours.update(grads, updated_state, updated)
                updated = apply_updates(updated, updates)
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            for expected, *actual in zip(leaves, params, updated, strict=True):
                for leaf in actual:
                    assert torch.allclose(leaf, expected, rtol=tolerance, atol=tolerance), (name, sample.desc)
            seen[name] += 1
    assert seen == {"SGD": 9, "Adam": 5, "AdamW": 5, "RMSprop": 8, "Adagrad": 7}


def test_every_error_is_one_here() -> None:
    refused: Counter[str] = Counter()
    listed: set[str] = set()
    for name, info in of_counterparts():
        for error in info.optim_error_inputs_func("cpu", torch.float64):
            sample = error.optimizer_error_input
            if sample.desc in NOT_REFUSED:
                listed.add(sample.desc)
                continue
            params = draw(0, torch.float64)
            with pytest.raises((TypeError, ValueError), match=r"must be|a schedule gives a number for each count"):
                counterpart(name, sample.kwargs).step(params, counterpart(name, sample.kwargs).init(params), params)
            refused[name] += 1
    assert listed == {*NOT_REFUSED}
    assert refused == {"SGD": 2, "Adam": 6, "AdamW": 6, "RMSprop": 2, "Adagrad": 2}
