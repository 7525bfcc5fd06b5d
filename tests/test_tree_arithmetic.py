"""Reductions of trees, products, sums and choices of trees, against the same on one long vector; several places at once."""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Final, assert_type

import attrs
import pytest
import torch
from torch import Tensor

from fundl import Linear, ReLU, compose, initialize, jit, key, linear, load, save, tree
from fundl.tree import Record


@attrs.frozen(eq=False)
class Affine(Record):
    weight: Tensor
    bias: Tensor | None
    mean: Tensor | None = attrs.field(default=None, metadata=tree.BUFFER)
    size: int = 3


Tree = tuple[Affine, dict[str, Tensor]]


def sample(seed: int, dtype: torch.dtype = torch.float64) -> Tree:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return Affine(draw(2, 3).t(), None, mean=1e3 * draw(2)), {"b": draw(4), "a": draw(), "empty": draw(0)}


def flat(of: object) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.trainable_leaves(of)])


REDUCTIONS: Final[dict[str, tuple[Callable[[object], Tensor], Callable[[Tensor], Tensor]]]] = {
    "sum": (tree.sum, torch.sum),
    "mean": (tree.mean, torch.mean),
    "max": (tree.max, torch.amax),
    "min": (tree.min, torch.amin),
    "all": (tree.all, torch.all),
    "any": (tree.any, torch.any),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("ours", "of_vector"), REDUCTIONS.values(), ids=REDUCTIONS.keys())
def test_a_reduction_is_that_of_all_trainable_numbers(
    ours: Callable[[object], Tensor], of_vector: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    given = sample(0, dtype)
    torch.testing.assert_close(ours(given).double(), of_vector(flat(given).double()).double())
    with_nan = tree.map(lambda leaf: leaf * math.nan, given)
    if of_vector in {torch.sum, torch.mean, torch.amax, torch.amin}:
        assert ours(with_nan).isnan()


def test_reductions_of_nothing() -> None:
    assert tree.sum(()).item() == 0
    assert tree.mean((torch.zeros(0), None)).isnan()
    assert tree.all(()).item() is True
    assert tree.any(()).item() is False
    for of in (tree.max, tree.min):
        with pytest.raises(ValueError, match=f"there is no number of which tree.{of.__name__} could be"):
            of((torch.zeros(0), None))


def test_sums_of_16_bits_grow_beyond_256_and_counts_are_whole() -> None:
    assert tree.sum((torch.ones(1000, dtype=torch.bfloat16),)).item() == 1000
    assert tree.sum((torch.ones(5, dtype=torch.bool), torch.ones(2, dtype=torch.int32))).equal(torch.tensor(7))
    assert tree.inner_product((torch.ones(1000, dtype=torch.float16),), (torch.ones(1000, dtype=torch.float16),)).item() == 1000


def test_products_and_sums_are_those_of_vectors() -> None:
    first, second = sample(0), sample(1)
    torch.testing.assert_close(tree.inner_product(first, second), flat(first) @ flat(second))
    for factor in (-0.5, torch.tensor(2.0)):
        result = tree.axpy(factor, first, second)
        assert_type(result, Tree)
        torch.testing.assert_close(flat(result), float(factor) * flat(first) + flat(second))
        assert result[0].mean is second[0].mean


def test_a_sum_has_the_dtypes_of_what_is_added_to() -> None:
    result = tree.axpy(torch.tensor(0.5, dtype=torch.float64), (torch.ones(2),), (torch.ones(2, dtype=torch.bfloat16),))
    assert result[0].equal(torch.full((2,), 1.5, dtype=torch.bfloat16))


def test_a_choice_is_of_all_or_of_each() -> None:
    first, second = sample(0), sample(1)
    for condition, expected in ((torch.tensor(True), first), (torch.tensor(False), second)):
        chosen = tree.where(condition, first, second)
        assert_type(chosen, Tree)
        assert flat(chosen).equal(flat(expected))
        assert chosen[0].mean is second[0].mean
    larger = tree.map(torch.gt, first, second)
    assert flat(tree.where(larger, first, second)).equal(torch.maximum(flat(first), flat(second)))


def test_a_gradient_is_of_the_models_type() -> None:
    model = initialize(key(0), compose(linear(2, 3), ReLU()))
    stepped = tree.axpy(-0.1, model, model)
    assert type(stepped[0]) is Linear
    torch.testing.assert_close(stepped[0].weight, 0.9 * model[0].weight)


def test_it_is_compiled() -> None:
    def total(first: Tree, second: Tree) -> tuple[Tensor, Tree]:
        safe = tree.where(tree.all(tree.map(torch.isfinite, first)), first, second)
        return tree.inner_product(safe, second) + tree.max(safe), tree.axpy(tree.sum(safe), first, second)

    pair = sample(0), sample(1)
    for one, other in zip(tree.leaves(jit(total)(*pair)), tree.leaves(total(*pair)), strict=True):
        torch.testing.assert_close(one, other)


def test_trees_that_are_not_alike_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x has a leaf at .* that y lacks"):
        tree.axpy(1.0, {"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"first\[0\] is float32\[2\], but second\[0\] is float32\[1\]"):
        tree.inner_product((torch.ones(2),), (torch.ones(1),))
    with pytest.raises(TypeError, match=r"at \[0\], one of yes and no has a tensor, and the other None"):
        tree.where(torch.tensor(True), (torch.ones(2), None), (None, torch.ones(2)))
    with pytest.raises(TypeError, match=r"condition is of booleans, not of torch\.float32"):
        tree.where(torch.tensor(1.0), (torch.ones(2),), (torch.ones(2),))
    with pytest.raises(ValueError, match="factor is one number"):
        tree.axpy(torch.ones(2), (torch.ones(2),), (torch.ones(2),))
    with pytest.raises(TypeError, match="factor is a number"):
        tree.axpy(True, (torch.ones(2),), (torch.ones(2),))


# --- By path, by class, several places ----------------------------------------------------------------------------------


def test_a_function_sees_the_paths_that_there_are() -> None:
    seen: list[str] = []

    def doubled(path: str, leaf: Tensor) -> Tensor:
        seen.append(path)
        return 2 * leaf

    given = sample(0)
    result = tree.map_with_path(doubled, given)
    assert_type(result, Tree)
    assert tree.equal(result, tree.map(lambda leaf: 2 * leaf, given))
    assert seen == [path for path, leaf in zip(tree.paths(given), tree.flatten(given)[0], strict=True) if leaf is not None]
    with pytest.raises(TypeError, match=r"the function comes first, tree\.map_with_path"):
        tree.map_with_path(given, doubled)  # type: ignore[arg-type]  # the mistake


def test_records_of_a_class_are_found_with_their_type() -> None:
    model = compose(linear(2, 3), ReLU(), linear(3, 1))
    layers = tree.records_of({"model": model, "x": torch.ones(1)}, Linear)
    assert [layer.weight.shape[0] for layer in layers] == [3, 1]
    assert tree.records_of(model, Affine) == []
    with pytest.raises(TypeError, match="cls is a class, such as Linear"):
        tree.records_of(model, "Linear")  # type: ignore[arg-type]  # the mistake


def test_several_places_are_read_and_set_at_once() -> None:
    given = sample(0)
    places = tree.at(given, lambda it: (it[0].weight, it[1]["b"]))
    weight, b = places.get()
    assert_type(weight, Tensor)
    assert (weight is given[0].weight, b is given[1]["b"]) == (True, True)
    new = places.set((torch.zeros(1), torch.ones(1)))
    assert_type(new, Tree)
    assert (new[0].weight.tolist(), new[1]["b"].tolist(), new[1]["a"] is given[1]["a"]) == ([0.0], [1.0], True)
    swapped = tree.at(given, lambda it: [it[1]["a"], it[1]["b"]]).apply(lambda both: both[::-1])
    assert swapped[1]["a"] is given[1]["b"]
    assert swapped[1]["b"] is given[1]["a"]


def test_what_several_places_cannot_be() -> None:
    given = sample(0)
    with pytest.raises(ValueError, match=r"none is in another one, but number 1 is in number 0"):
        tree.at(given, lambda it: (it[0], it[0].weight))
    with pytest.raises(ValueError, match="there are 2 places, and one value is needed for each"):
        tree.at(given, lambda it: (it[0].weight, it[1]["b"])).set((torch.ones(1),))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="`where` must return a place of the tree"):
        tree.at(given, lambda it: (it[0].weight, 3))
    with pytest.raises(TypeError, match="`where` must return a place of the tree"):
        tree.at(given, lambda _it: ())


# --- Dicts of all kinds -------------------------------------------------------------------------------------------------


def nothing() -> Tensor:
    return torch.zeros(0)


DICTS: Final[dict[str, dict[str, Tensor]]] = {
    "dict": {"b": torch.ones(1), "a": torch.zeros(2)},
    "OrderedDict": OrderedDict([("b", torch.ones(1)), ("a", torch.zeros(2))]),
    "defaultdict": defaultdict(nothing, {"b": torch.ones(1), "a": torch.zeros(2)}),
}


@pytest.mark.parametrize("name", DICTS)
def test_dicts_of_all_kinds_stay_what_they_are(name: str, tmp_path: object) -> None:
    given = DICTS[name]
    save(f"{tmp_path}/saved.safetensors", given)
    results = {
        "map": tree.map(torch.clone, given),
        "map_with_path": tree.map_with_path(lambda _, leaf: leaf.clone(), given),
        "axpy": tree.axpy(0.0, given, given),
        "where": tree.where(torch.tensor(True), given, given),
        "at": tree.at(given, lambda it: (it["a"], it["b"])).set((given["a"], given["b"])),
        "load": load(f"{tmp_path}/saved.safetensors", given),
        "jit": jit(lambda it: tree.map(torch.clone, it))(given),
    }
    for function, result in results.items():
        assert type(result) is type(given), function
        assert [*result] == ["b", "a"], function
        assert getattr(result, "default_factory", None) is getattr(given, "default_factory", None), function
        assert tree.equal(result, given), function


def test_a_dict_of_another_kind_or_default_is_compiled_anew() -> None:
    def one() -> Tensor:
        return torch.ones(1)

    def other() -> Tensor:
        return torch.zeros(1)

    copied = jit(lambda it: tree.map(torch.clone, it))
    for kind in (dict, OrderedDict, lambda pairs: defaultdict(one, pairs), lambda pairs: defaultdict(other, pairs)):
        given: dict[str, Tensor] = kind({"a": torch.ones(1)})
        for _ in range(2):
            result = copied(given)
            assert type(result) is type(given)
            assert getattr(result, "default_factory", None) is getattr(given, "default_factory", None)
    assert len(copied.traces) == 4
