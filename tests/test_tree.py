"""Records, leaves, mapping, measures, and places: every function of a tree."""

from collections.abc import Callable
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.tree import BUFFER, Record

V = TypeVar("V")

quietly: Final = settings(deadline=None, derandomize=True, max_examples=100)


@attrs.frozen(eq=False)
class Pair(Record):
    left: Tensor | None
    right: Tensor | None
    label: str = "pair"


@attrs.frozen(eq=False)
class Tracked(Record):
    """A record with a buffer before a parameter, and with a record inside."""

    mean: Tensor | None = attrs.field(metadata=BUFFER)
    weight: Tensor
    inner: Pair
    rate: float = 0.5


@attrs.frozen(eq=False)
class Nothing(Record):
    """A record without leaves."""


class Named(NamedTuple):
    a: Tensor
    b: Record


def twin() -> Record:
    """A record of another class of the same name, as a notebook makes it whose cell is run twice."""

    @attrs.frozen(eq=False)
    class Pair(Record):
        left: Tensor
        right: Tensor

    return Pair(ONE, TWO)


ONE, TWO, THREE, FOUR = (torch.full((size,), float(size)) for size in (1, 2, 3, 4))
TRACKED: Final = Tracked(mean=ONE, weight=TWO, inner=Pair(THREE, None))


# --- Records -----------------------------------------------------------------------------------------------------------


def test_fields_that_can_hold_tensors_are_children() -> None:
    @attrs.frozen(eq=False)
    class Everything(Record, Generic[V]):
        tensor: Tensor
        record: Pair
        maybe: Tensor | None
        parts: tuple[Pair, ...]
        table: dict[str, list[Tensor]]
        either: Tensor | Pair
        anything: V
        number: float
        sizes: tuple[int, ...]
        mode: Literal["sum", "mean"]
        function: Callable[[Tensor], Tensor]
        kind: type[Pair]
        dtype: torch.dtype

    assert Everything.children == ("tensor", "record", "maybe", "parts", "table", "either", "anything")


def test_fields_are_inherited() -> None:
    @attrs.frozen(eq=False)
    class Triple(Pair):
        middle: Tensor = ONE
        count: int = 3

    assert Triple.children == ("left", "right", "middle")
    assert tree.leaves(Triple(TWO, None)) == [TWO, ONE]


def test_records_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        TRACKED.weight = ONE  # type: ignore[misc]  # what must not be done


def test_undecorated_record() -> None:
    class Plain(Record):
        weight: Tensor

    with pytest.raises(TypeError, match=r"^Plain is not a record: decorate the class with @attrs\.frozen\(eq=False\)$"):
        Plain()


def test_mutable_record() -> None:
    with pytest.raises(TypeError, match=r"^Mutable can be mutated: decorate it with @attrs\.frozen\(eq=False\)$"):

        @attrs.define(eq=False)
        class Mutable(Record):
            weight: Tensor
            __setattr__ = object.__setattr__


def test_unreadable_annotations() -> None:
    with pytest.raises(TypeError, match=r"the annotations of Lost cannot be read \(name 'Nowhere' is not defined\): import"):

        @attrs.frozen(eq=False)
        class Lost(Record):
            weight: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # what must not be done


def test_records_may_name_themselves() -> None:
    @attrs.frozen(eq=False)
    class Chain(Record):
        head: Tensor
        tail: "Chain | None" = None

    assert tree.leaves(Chain(ONE, Chain(TWO))) == [ONE, TWO]


def test_records_read_short() -> None:
    assert repr(TRACKED) == "Tracked(mean=float32[1], weight=float32[2], inner=Pair(left=float32[3], right=None))"
    assert repr(Pair(None, None, label="odd")) == "Pair(left=None, right=None, label='odd')"


def test_a_record_may_read_as_it_likes() -> None:
    @attrs.frozen(eq=False)
    class Own(Record):
        weight: Tensor

        @override
        def __repr__(self) -> str:
            return "mine"

    assert repr(Own(ONE)) == "mine"


def test_describe() -> None:
    value = (torch.zeros((), dtype=torch.int64), (torch.zeros(2, 0, dtype=torch.bfloat16),), None, 3, "x")
    assert tree.describe(value) == "(int64[], (bfloat16[2, 0],), None, 3, 'x')"


def test_misplaced_tensors() -> None:
    @attrs.frozen(eq=False)
    class Hidden(Record):
        weight: object
        label: object

    assert tree.misplaced_tensors([TRACKED, Hidden(1, "x")]) == []
    assert tree.misplaced_tensors((TRACKED, [Hidden(ONE, "x")])) == ["Hidden.weight"]


# --- Leaves ------------------------------------------------------------------------------------------------------------


def test_flatten_gives_all_leaves() -> None:
    leaves, structure = tree.flatten(TRACKED)
    assert [leaf is one for leaf, one in zip(leaves, (ONE, TWO, THREE, None), strict=True)] == [True] * 4
    assert tree.equal(tree.unflatten(structure, leaves), TRACKED)
    assert structure.num_leaves == 4


def test_trainable_leaves_are_without_buffers_and_none() -> None:
    leaves = tree.trainable_leaves(TRACKED)
    assert [leaf is one for leaf, one in zip(leaves, (TWO, THREE), strict=True)] == [True] * 2
    changed = tree.with_trainable_leaves(TRACKED, [FOUR, ONE])
    assert changed.mean is ONE
    assert changed.weight is FOUR
    assert changed.inner.left is ONE
    assert changed.inner.right is None
    assert changed.rate == 0.5


@pytest.mark.parametrize(("given_leaves", "word"), [([ONE], "fewer"), ([ONE] * 3, "more")])
def test_there_must_be_as_many_leaves_as_places(given_leaves: list[Tensor], word: str) -> None:
    with pytest.raises(ValueError, match=f"the tree has 2 trainable leaves, but {word} were given"):
        tree.with_trainable_leaves(TRACKED, given_leaves)


def test_empty_tensors_are_equal_whatever_their_strides() -> None:
    assert tree.equal(torch.empty(0, dtype=torch.float64)[::2], torch.empty(0, dtype=torch.float64))


def test_dicts_of_the_same_leaves_line_up_however_they_were_made() -> None:
    assert tree.trainable_leaves({"a": ONE, "b": TWO}) == tree.trainable_leaves({"b": TWO, "a": ONE})
    swapped = tree.with_trainable_leaves({"b": TWO, "a": ONE}, [THREE, FOUR])
    assert list(swapped) == ["b", "a"]
    assert swapped["a"] is THREE


def test_what_is_no_tree_has_no_trainable_leaves() -> None:
    with pytest.raises(TypeError, match=r"but here is 'weights' \(str\)"):
        tree.trainable_leaves((ONE, "weights"))


def test_static_fields_are_structure() -> None:
    assert tree.flatten(TRACKED)[1] == tree.flatten(attrs.evolve(TRACKED, weight=ONE))[1]
    assert tree.flatten(TRACKED)[1] != tree.flatten(attrs.evolve(TRACKED, rate=0.1))[1]
    assert tree.flatten(Pair(ONE, None))[1] == tree.flatten(Pair(ONE, TWO))[1]


def test_unflatten_goes_past_validators() -> None:
    @attrs.frozen(eq=False)
    class Strict(Record):
        weight: Tensor = attrs.field(validator=attrs.validators.instance_of(Tensor))

    structure = tree.flatten(Strict(ONE))[1]
    assert tree.describe(tree.unflatten(structure, [None]).weight) == "None"


def test_wrong_number_of_leaves() -> None:
    with pytest.raises(ValueError, match="leaves"):
        tree.unflatten(tree.flatten(TRACKED)[1], [ONE])


def test_leaves_are_tensors_alone() -> None:
    assert tree.leaves(TRACKED) == [ONE, TWO, THREE]
    assert tree.leaves({"b": ONE, "a": [None, (TWO,)]}) == [TWO, ONE]
    assert tree.leaves(None) == []


def test_paths() -> None:
    nested = {"model": (TRACKED, [ONE])}
    assert tree.paths(nested) == [
        "['model'][0].mean",
        "['model'][0].weight",
        "['model'][0].inner.left",
        "['model'][0].inner.right",
        "['model'][1][0]",
    ]
    assert tree.trainable_paths(TRACKED) == [".weight", ".inner.left"]
    assert tree.paths(ONE) == [""]


def test_records_come_outer_before_inner() -> None:
    other = Pair(None, None)
    found = tree.records((TRACKED, {"x": [other]}, ONE))
    assert [id(record) for record in found] == [id(TRACKED), id(TRACKED.inner), id(other)]


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        ((ONE, TWO), (ONE,), r"here has a leaf at \[1\] that there lacks"),
        ((ONE,), {"a": ONE}, r"here has a leaf at \[0\] that there lacks"),
        ((ONE,), (ONE, {"a": ONE}), r"there has a leaf at \[1\]\['a'\] that here lacks"),
        (Pair(ONE, TWO), Pair(ONE, TWO, label="odd"), "at the root, both are of class Pair, but their static fields differ"),
        ([{"a": (ONE,)}], [{"a": [ONE]}], r"at \[0\]\['a'\], here is of class tuple, and there of class list"),
        (Named(ONE, Pair(ONE, TWO)), Named(ONE, twin()), r"at \.b, both are of a class Pair, but it was defined twice"),
        ((Nothing(),), (Nothing(), Nothing()), r"at the root, here has the parts \[0\], and there \[0, 1\]"),
    ],
)
def test_require_same_structure(first: object, second: object, where: str) -> None:
    with pytest.raises(TypeError, match="^here and there are not of the same structure: .*" + where):
        tree.require_same_structure(first, second, names=("here", "there"))
    tree.require_same_structure(first, first, names=("here", "there"))


# --- Mapping -----------------------------------------------------------------------------------------------------------


def test_map() -> None:
    doubled = tree.map(lambda leaf: 2 * leaf, TRACKED)
    assert tree.equal(doubled, Tracked(mean=2 * ONE, weight=2 * TWO, inner=Pair(2 * THREE, None)))
    assert tree.equal(TRACKED.weight, TWO)


def test_map_of_several_trees() -> None:
    first, second, third = Pair(ONE, None), Pair(2 * ONE, None), Pair(4 * ONE, None)
    assert tree.equal(tree.map(torch.add, first, second), Pair(3 * ONE, None))
    assert tree.equal(tree.map(lambda a, b, c: a + b * c, first, second, third), Pair(9 * ONE, None))


def test_map_of_trees_that_differ() -> None:
    first: tuple[Tensor, ...] = (ONE, TWO)
    with pytest.raises(TypeError, match=r"the first tree and tree 2 .* the first tree has a leaf at \[1\] that tree 2 lacks"):
        tree.map(torch.add, first, (ONE,))
    with pytest.raises(TypeError, match=r"the first tree and tree 3 .* tree 3 has a leaf at \[2\] that the first tree lacks"):
        tree.map(lambda a, b, c: a + b + c, first, first, (ONE, TWO, THREE))
    with pytest.raises(TypeError, match="static fields differ"):
        tree.map(torch.add, Pair(ONE, TWO), Pair(ONE, TWO, label="odd"))


def test_map_records_goes_from_outer_to_inner() -> None:
    seen: list[str] = []

    def relabel(record: Record) -> Record:
        seen.append(type(record).__name__)
        if isinstance(record, Tracked):
            return attrs.evolve(record, inner=Pair(FOUR, FOUR, label="new"))
        assert isinstance(record, Pair)
        return attrs.evolve(record, label=f"{record.label}!")

    first, others = tree.map_records(relabel, (TRACKED, {"x": [Pair(ONE, TWO)]}))
    assert seen == ["Tracked", "Pair", "Pair"]
    assert first.inner.label == "new!"
    assert others["x"][0].label == "pair!"
    assert TRACKED.inner.label == "pair"


def test_children_are_changed_past_validators() -> None:
    assert tree.children(TRACKED) == [ONE, TWO, TRACKED.inner]
    changed = tree.with_children(TRACKED, [None, TWO, 3])
    assert isinstance(changed, Tracked)
    assert tree.children(changed) == [None, TWO, 3]
    assert TRACKED.mean is ONE


def test_map_records_keeps_what_does_not_change() -> None:
    model = (TRACKED, (Pair(ONE, TWO),))
    assert tree.map_records(lambda record: record, model) is model
    assert tree.equal(tree.map_records(lambda record: record, [TRACKED, None]), [TRACKED, None])


def test_cast_to() -> None:
    mixed = (ONE, torch.tensor([1]), torch.tensor([True]), None, torch.empty(2, device="meta"))
    cast = tree.cast_to(mixed, torch.float16)
    assert tree.describe(cast) == "(float16[1], int64[1], bool[1], None, float16[2])"
    assert cast[1] is mixed[1]
    assert cast[4].is_meta


def test_move_to() -> None:
    there = tree.move_to(TRACKED, "meta")
    assert all(leaf.is_meta for leaf in tree.leaves(there))
    assert tree.equal(tree.move_to(there, torch.device("meta")), there)
    assert tree.equal(tree.move_to(TRACKED, "cpu"), TRACKED)
    with pytest.raises(ValueError, match=r"no values to move to cpu: call initialize\(key, model, device=\.\.\.\) first"):
        tree.move_to((ONE, there), "cpu")


def test_zeros_like() -> None:
    zeros = tree.zeros_like((ONE.double(), Pair(torch.tensor([3]), None)))
    assert tree.equal(zeros, (torch.zeros(1).double(), Pair(torch.tensor([0]), None)))


# --- Measures ----------------------------------------------------------------------------------------------------------


def test_norm() -> None:
    expected = torch.cat([TWO, THREE]).norm()
    assert torch.allclose(tree.norm(TRACKED), expected)
    assert torch.allclose(tree.norm_of([TWO, torch.zeros(0), THREE]), expected)
    assert tree.norm((None, Pair(None, None))) == 0


def test_count_and_nbytes() -> None:
    assert tree.count(TRACKED) == 2 + 3
    assert tree.nbytes(TRACKED) == 4 * (1 + 2 + 3)
    assert tree.nbytes((torch.zeros(3, dtype=torch.int8), torch.zeros(2, dtype=torch.float64, device="meta"))) == 3 + 16


NAN: Final = torch.tensor([float("nan"), 1.0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TRACKED, Tracked(mean=ONE.clone(), weight=TWO.clone(), inner=Pair(THREE.clone(), None))),
        (NAN, NAN.clone()),
        (torch.zeros(0), torch.zeros(0)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (torch.arange(6).reshape(2, 3).t(), torch.arange(6).reshape(2, 3).t().contiguous()),
        (torch.zeros(2, device="meta"), torch.zeros(2, device="meta")),
        (None, None),
        ({"a": torch.tensor([True])}, {"a": torch.tensor([True])}),
    ],
    ids=str,
)
def test_equal(first: object, second: object) -> None:
    assert tree.equal(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TRACKED, attrs.evolve(TRACKED, mean=FOUR[:1])),
        (TRACKED, attrs.evolve(TRACKED, rate=0.1)),
        (NAN, torch.tensor([1.0, 1.0])),
        (torch.zeros(0, 2), torch.zeros(0, 3)),
        (ONE, ONE.double()),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (ONE, None),
        (None, ONE),
        ((ONE,), [ONE]),
        (torch.zeros(2, device="meta"), torch.zeros(2)),
    ],
    ids=str,
)
def test_not_equal(first: object, second: object) -> None:
    assert not tree.equal(first, second)


# --- One place of a tree -----------------------------------------------------------------------------------------------

MODEL: Final = (TRACKED, {"x": [Pair(ONE, TWO), Pair(THREE, FOUR)]})


def test_get() -> None:
    assert tree.at(MODEL, lambda model: model[0].inner.left).get() is THREE
    assert tree.at(MODEL, lambda model: model[1]["x"][-1].right).get() is FOUR
    assert tree.at(MODEL, lambda model: model[0].rate).get() == 0.5
    assert tree.at(MODEL, lambda model: model).get() is MODEL


def test_set() -> None:
    changed = tree.at(MODEL, lambda model: model[1]["x"][-1].right).set(ONE)
    assert changed[1]["x"][1].right is ONE
    assert changed[1]["x"][0] is MODEL[1]["x"][0]
    assert changed[0] is TRACKED
    assert MODEL[1]["x"][1].right is FOUR
    assert tree.at(MODEL, lambda model: model).set(changed) is changed


def test_set_of_a_static_field_and_of_a_whole_record() -> None:
    assert tree.at(MODEL, lambda model: model[0].rate).set(0.1)[0].rate == 0.1
    assert tree.at(MODEL, lambda model: model[0].inner).set(Pair(None, None))[0].inner.left is None
    assert TRACKED.rate == 0.5


def test_set_runs_validators() -> None:
    @attrs.frozen(eq=False)
    class Positive(Record):
        rate: float = attrs.field(validator=attrs.validators.gt(0))

    with pytest.raises(ValueError, match="must be > 0"):
        tree.at((Positive(1.0),), lambda pair: pair[0].rate).set(-1.0)


def test_apply() -> None:
    assert tree.equal(tree.at(TRACKED, lambda model: model.weight).apply(lambda leaf: 2 * leaf).weight, 2 * TWO)
    assert tree.equal(TRACKED.weight, TWO)


def test_where_must_go_to_a_place() -> None:
    with pytest.raises(TypeError, match=r"by attributes and indices alone, such as .*; what else it did failed \(IndexError: "):
        tree.at(TRACKED, lambda model: tree.leaves(model)[0])
    with pytest.raises(TypeError, match=r"`where` must return a place .*, such as `lambda model: model\[0\]\.weight`, not 3"):
        tree.at(MODEL, lambda _: 3)


def test_places_that_are_not_there() -> None:
    with pytest.raises(IndexError):
        tree.at((ONE,), lambda model: model[1]).set(TWO)  # type: ignore[misc]  # what must not be done
    with pytest.raises(KeyError, match="y"):
        tree.at({"x": ONE}, lambda model: model["y"]).get()
    with pytest.raises(AttributeError, match="wait"):
        tree.at(TRACKED, lambda model: model.wait).set(ONE)  # type: ignore[attr-defined]  # what must not be done
    with pytest.raises(TypeError, match="a Tensor has no part 0 that can be replaced"):
        tree.at(TRACKED, lambda model: model.weight[0]).set(ONE)


# --- Any tree ----------------------------------------------------------------------------------------------------------

tensors: Final = st.builds(
    torch.full, st.lists(st.integers(0, 2), max_size=2), st.integers(-3, 3), dtype=st.sampled_from([torch.float32, torch.int64])
)


def one_level_up(trees: "st.SearchStrategy[object]") -> "st.SearchStrategy[object]":
    """Trees made of trees."""
    leaves = st.none() | tensors
    return st.one_of(
        st.lists(trees, max_size=3),
        st.lists(trees, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), trees, max_size=3),
        st.builds(Pair, leaves, leaves, st.sampled_from(["even", "odd"])),
        st.builds(Tracked, leaves, tensors, st.builds(Pair, leaves, leaves), st.sampled_from([0.0, 0.5])),
    )


trees: Final = st.recursive(st.none() | tensors, one_level_up, max_leaves=10)


def test_any_tree_comes_apart_and_together() -> None:
    def check(value: object) -> None:
        leaves, structure = tree.flatten(value)
        assert tree.equal(tree.unflatten(structure, leaves), value)
        trainable = tree.trainable_leaves(value)
        assert tree.equal(tree.with_trainable_leaves(value, trainable), value)
        assert tree.equal(tree.map(torch.clone, value), value)
        assert tree.equal(tree.map_records(lambda record: record, value), value)
        assert tree.count(value) == sum(leaf.numel() for leaf in trainable)
        assert tree.nbytes(value) == sum(leaf.nbytes for leaf in leaves if leaf is not None)

    quietly(given(trees)(check))()


def test_the_paths_of_any_tree_lead_to_its_leaves() -> None:
    def check(value: object) -> None:
        def at(path: str) -> object:
            return eval(f"value{path}", {"value": value})  # what the path says, taken by its word

        leaves = tree.flatten(value)[0]
        assert [at(path) is leaf for path, leaf in zip(tree.paths(value), leaves, strict=True)] == [True] * len(leaves)
        trainable = tree.trainable_leaves(value)
        paths = tree.trainable_paths(value)
        assert [at(path) is leaf for path, leaf in zip(paths, trainable, strict=True)] == [True] * len(trainable)

    quietly(given(trees)(check))()
