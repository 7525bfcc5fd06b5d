"""What changes gradients, and what goes around an optimizer, beyond formulas: blocks, limits, noise by a key, slow params."""

from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    Linear,
    ReLU,
    accumulate,
    adam,
    add_noise,
    centralize,
    chain,
    clip_adaptively,
    clip_by_norm,
    compose,
    ensemble,
    initialize,
    jit,
    key,
    linear,
    load,
    lookahead,
    momentum,
    mse,
    random,
    save,
    sgd,
    skip_nonfinite,
    skipped_steps,
    split,
    train_state,
    train_step,
    tree,
)
from fundl.optim.centralize import _centred
from fundl.optim.chain import AnyTransform
from fundl.training.step import Step
from fundl.tree import Split, Talk

TypedStep: TypeAlias = Step["Model", Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]  # of any optimizer
Model: TypeAlias = tuple[Linear[int, int], ReLU, Linear[int, int]]

BATCH: Final = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))


def model() -> Model:
    made: Model = initialize(key(2), compose(linear(3, 4), ReLU(), linear(4, 2)))
    return made


AROUND: Final[dict[str, AnyTransform]] = {
    "clipped": chain(clip_by_norm(0.1), clip_adaptively(0.05), sgd(0.1)),
    "centred": chain(centralize(), momentum(0.1)),
    "noisy": chain(add_noise(key(7)), adam(0.05)),
    "lookahead": lookahead(adam(0.05), every=2),
    "limited": skip_nonfinite(adam(0.05), limit=2),
}


COMPILED: Final = chain(
    clip_by_norm(0.1),
    clip_adaptively(0.05),
    centralize(),
    add_noise(key(7)),
    skip_nonfinite(lookahead(sgd(0.05), every=2), limit=2),
)


@pytest.mark.parametrize("donate", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", [COMPILED], ids=["all of them"])
def test_a_compiled_step_is_compiled_once_and_does_the_same(optimizer: AnyTransform, *, donate: bool) -> None:
    plain: TypedStep = train_step(mse, optimizer)
    step = jit(plain, max_traces=1, donate="state" if donate else ())
    state, eager = (train_state(key(3), model(), optimizer) for _ in range(2))
    for _ in range(4):
        (state, _), (eager, _) = step(state, BATCH), plain(eager, BATCH)
        for one, other in zip(tree.leaves(state), tree.leaves(eager), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", AROUND.values(), ids=AROUND.keys())
def test_a_run_that_is_taken_up_goes_on_to_the_bit(optimizer: AnyTransform, tmp_path: Path) -> None:
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    for _ in range(3):
        state, _ = step(state, BATCH)
    save(tmp_path / "state.safetensors", state)
    loaded = load(tmp_path / "state.safetensors", train_state(key(4), model(), optimizer))
    for _ in range(3):
        (state, _), (loaded, _) = step(state, BATCH), step(loaded, BATCH)
    assert tree.equal(loaded, state)


@pytest.mark.parametrize("optimizer", AROUND.values(), ids=AROUND.keys())
def test_each_run_of_an_ensemble_is_as_it_is_alone(optimizer: AnyTransform) -> None:
    models = ensemble.initialize(split(key(2), 2), model())
    state = ensemble.train_state(split(key(3), 2), models, optimizer)
    alone = [train_state(one, each, optimizer) for one, each in zip(split(key(3), 2), ensemble.unstack(models), strict=True)]
    single: TypedStep = train_step(mse, optimizer)
    for _ in range(4):
        state, _ = ensemble.train_step(mse, optimizer)(state, ensemble.share(BATCH, 2))
        alone = [single(one, BATCH)[0] for one in alone]
    for of_run, one in zip(ensemble.unstack(state.model), alone, strict=True):
        for leaf, other in zip(tree.leaves(of_run), tree.leaves(one.model), strict=True):
            torch.testing.assert_close(leaf, other, rtol=1e-4, atol=1e-6)


# --- Blocks -------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Repeated(tree.Record):
    """As `repeat` has it: the blocks of all layers in one tensor."""

    stacked: tuple[Tensor, Tensor]


@pytest.mark.parametrize(
    "transform", [clip_by_norm(0.5), clip_adaptively(0.1), centralize()], ids=["norm", "adaptive", "centre"]
)
def test_blocks_that_are_stacked_are_each_by_itself(transform: AnyTransform) -> None:
    params = Repeated((random.normal(key(0), (3, 4, 2)), random.normal(key(1), (3, 4))))
    grads = Repeated((3 * random.normal(key(2), (3, 4, 2)), random.normal(key(3), (3, 4))))
    updates, _ = transform.update(grads, transform.init(params), params)
    for place in range(3):
        own = tuple(leaf[place] for leaf in params.stacked)
        expected, _ = transform.update(tuple(leaf[place] for leaf in grads.stacked), transform.init(own), own)
        for one, other in zip(updates.stacked, expected, strict=True):
            torch.testing.assert_close(one[place], other)


@attrs.frozen
class Known:
    """A division of processes, of which one is here: what the others have to say is known."""

    others: Tensor
    rank: int
    size: int = 2

    def talk(self) -> Talk:
        raise AssertionError

    def of_all(self, tensor: Tensor, /) -> Tensor:
        return torch.cat((self.others, tensor) if self.rank else (tensor, self.others))


def test_the_mean_of_a_row_of_which_processes_have_parts_is_that_of_all() -> None:
    whole = random.normal(key(0), (4, 5), dtype=torch.float64)
    expected = whole - whole.mean(1, keepdim=True)
    parts = [whole[:, :3], torch.cat((whole[:, 3:], torch.zeros(4, 1)), 1)]  # the second is filled up
    centred = []
    for rank in (0, 1):
        among = Known(parts[1 - rank].sum(1, keepdim=True).unsqueeze(0), rank)
        centred.append(_centred(parts[rank], 1, Split(among, whole=5, part=3, axis=1)))
    torch.testing.assert_close(torch.cat(centred, 1), torch.cat((expected, torch.zeros(4, 1)), 1))
    by_rows = _centred(whole[:2], 1, Split(Known(whole, 0), whole=4, part=2, axis=0))
    torch.testing.assert_close(by_rows, expected[:2])


# --- Limits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [False, True])
def test_so_many_in_a_row_are_left_out_and_the_next_is_let_through(*, over: bool) -> None:
    optimizer = skip_nonfinite(sgd(1.0), limit=2)
    good, bad = torch.tensor([1.0]), torch.tensor([torch.nan])
    params, state = torch.zeros(1), optimizer.init(torch.zeros(1))
    for grad, expected in ((bad, 0.0), (bad, 0.0), (good, -1.0), (bad, -1.0), (bad, -1.0)):
        params, state = (optimizer.step_over if over else optimizer.step)(grad, state, params)
        assert params.tolist() == [expected]
    assert int(skipped_steps(state)) == 4
    params, state = (optimizer.step_over if over else optimizer.step)(bad, state, params)
    assert params.isnan().all()
    assert int(skipped_steps(state)) == 4


def test_a_limit_is_a_count() -> None:
    with pytest.raises(ValueError, match="limit must be 1 or more, not 0"):
        skip_nonfinite(sgd(0.1), limit=0)
    with pytest.raises(TypeError, match=r"limit must be an int, not 1\.5"):
        skip_nonfinite(sgd(0.1), limit=1.5)  # type: ignore[arg-type]  # the mistake


# --- Noise --------------------------------------------------------------------------------------------------------------


def test_the_noise_is_normal_and_lessens() -> None:
    noise, params = add_noise(key(3), variance=4.0, decay=1.0), torch.zeros(100_000)
    state = noise.init(params)
    for steps in range(1, 4):
        updates, state = noise.update(torch.ones_like(params), state, params)
        size = (4.0 / steps) ** 0.5
        assert abs(float(updates.mean()) - 1) < 5 * size / 100_000**0.5
        assert float(updates.std()) == pytest.approx(size, rel=0.01)


def test_each_leaf_step_and_key_has_noise_of_its_own() -> None:
    params = torch.zeros(4), torch.zeros(4)
    seen = []
    for seed in (0, 1):
        noise = add_noise(key(seed))
        state = noise.init(params)
        for _ in range(2):
            updates, state = noise.update(params, state, params)
            seen += [tuple(leaf.tolist()) for leaf in updates]
    assert len({*seen}) == 8


def test_noise_of_a_key_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="the key has no values here"):
        add_noise(torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="the key is of a part"):
        add_noise(random.of_part(key(0), torch.tensor([0, 1, 1])))
    with pytest.raises(TypeError, match="a key is made by"):
        add_noise(3)  # type: ignore[arg-type]  # the mistake
    assert add_noise(key(0)) == add_noise(key(0)) != add_noise(key(1))


# --- Lookahead ----------------------------------------------------------------------------------------------------------


def test_whole_steps_are_counted_within_what_gathers() -> None:
    moved = []
    optimizers: list[AnyTransform] = [accumulate(lookahead(sgd(1.0), every=2), 2), lookahead(accumulate(sgd(1.0), 2), every=2)]
    for optimizer in optimizers:
        params, state = torch.zeros(1), optimizer.init(torch.zeros(1))
        for _ in range(4):
            params, state = optimizer.step(torch.tensor([-1.0]), state, params)
        moved.append(params.item())
    assert moved == [1.0, 1.0]


def test_a_share_of_1_is_the_optimizer_itself() -> None:
    states = [train_state(key(3), model(), optimizer) for optimizer in (adam(0.1), lookahead(adam(0.1), every=1, share=1.0))]
    plain: TypedStep = train_step(mse, adam(0.1))
    ahead: TypedStep = train_step(mse, lookahead(adam(0.1), every=1, share=1.0))
    for _ in range(3):
        states = [plain(states[0], BATCH)[0], ahead(states[1], BATCH)[0]]
    assert tree.equal(states[0].model, states[1].model)
