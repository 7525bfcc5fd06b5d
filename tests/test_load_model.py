"""Models are made of what files say of them: equal to the bit, of classes that are known, and of no others."""

import functools
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

import fundl
from fundl import (
    BatchNorm,
    Dropout,
    Embedding,
    Fans,
    Initializer,
    Key,
    Layer,
    Linear,
    Model,
    ReLU,
    adam,
    batch_norm,
    calibrate,
    compose,
    embedding,
    frozen,
    initialize,
    key,
    layer_norm,
    linear,
    load,
    load_model,
    mixed_precision,
    mse,
    parallel,
    repeat,
    residual,
    save,
    saved_as,
    tied,
    train_state,
    tree,
)
from fundl.saving import _registry
from tests.samples import SAMPLES, Sample


@saved_as("test: scale")
@attrs.frozen(eq=False)
class Scale(Layer[Tensor]):
    weight: Tensor
    power: float = 1.0
    rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    shape: tuple[int, ...] = ()
    kind: torch.dtype = torch.float32

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> "tuple[Scale, Tensor]":
        return self.gradient((grad * residuals).sum(0)), self.weight * grad


@saved_as("test: towers")
class Towers(NamedTuple):
    left: Linear
    right: Linear


@saved_as("test: half")
@attrs.frozen
class Half(Initializer):
    shift: complex = 0j

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        del key, fans
        return torch.full(shape, 0.5, dtype=dtype, device=device)


@saved_as("test: configured")
@attrs.frozen(eq=False)
class Configured(Layer[Tensor]):
    weight: Tensor
    rule: object = None

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> "tuple[Configured, Tensor]":
        return self.gradient((grad * residuals).sum(0)), self.weight * grad


@saved_as("test: with parts")
@attrs.frozen(eq=False)
class WithParts(Layer[None]):
    """y = x times the sum of its parts; it has no gradients, which nothing here needs."""

    parts: defaultdict[str, Tensor]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * sum(part.sum() for part in self.parts.values()), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["WithParts", Tensor]:
        return self, grad * sum(part.sum() for part in self.parts.values())


@attrs.frozen(eq=False)
class Unknown(Scale):
    """A layer that nobody registered."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def require_the_same(again: object, model: object) -> None:
    tree.require_same_structure(again, model, names=("again", "model"))
    assert tree.flatten(again)[1] == tree.flatten(model)[1]
    assert tree.equal(again, model)
    for one, other in zip(tree.leaves(again), tree.leaves(model), strict=True):
        assert one.dtype == other.dtype


@pytest.mark.parametrize("sample", [row for row in SAMPLES if row.name != "module"], ids=lambda sample: sample.name)
def test_every_layer_is_made_again(path: Path, sample: Sample) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    models = tuple(tree.cast_to(sample.model, dtype) for dtype in dtypes)
    save(path, models)
    require_the_same(load_model(path), models)


def test_a_module_is_not_in_the_file(path: Path) -> None:
    (row,) = [row for row in SAMPLES if row.name == "module"]
    save(path, row.model)
    with pytest.raises(ValueError, match=r"static field, which files cannot tell of: load it with load\(path, like\)"):
        load_model(path)
    assert tree.equal(load(path, like=tree.zeros_like(row.model)), row.model)


def with_statistics() -> Model:
    model = initialize(key(0), compose(linear(2, 3), batch_norm(3)))
    return calibrate(model, [torch.randn(10, 2)])


MODELS: Final[dict[str, Callable[[], Model]]] = {
    "tuples": lambda: compose(linear(2, 3), (ReLU(), (linear(3, 3, bias=False),)), Dropout(0.5)),
    "a NamedTuple": lambda: Towers(linear(2, 3), linear(3, 1, weight_init=Half(1 + 2j))),
    "residual": lambda: residual(linear(2, 2), ReLU()),
    "repeat": lambda: repeat(3, residual(linear(2, 2), ReLU()), layer_norm(2)),
    "parallel": lambda: parallel(linear(2, 3), linear(2, 3)),
    "mixed_precision": lambda: mixed_precision(linear(2, 3)),
    "frozen": lambda: (frozen(linear(2, 3)), linear(3, 1)),
    "tied": lambda: tied(embedding(5, 4), layer_norm(4)),
    "batch statistics": with_statistics,
    "none": lambda: (ReLU(),),
    "a layer": lambda: linear(1, 3),
    "no numbers": lambda: Linear(torch.ones(0, 3), torch.ones(0)),
    "a user's": lambda: Scale(torch.ones(2), float("nan"), mse, (1, 2), torch.float64),
    "limits": lambda: Scale(torch.ones(2), float("-inf"), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_compositions_are_made_again(path: Path, name: str) -> None:
    model = MODELS[name]()
    model = initialize(key(0), model) if any(leaf.is_meta for leaf in tree.leaves(model)) else model
    save(path, model)
    told, again = _told(path), load_model(path)
    assert repr(again) == repr(model)
    assert tree.equal(tree.leaves(again), tree.leaves(model))
    if name != "a user's":  # which has a number that is not equal to itself
        require_the_same(again, model)
    save(path, again)
    assert _told(path) == told or name == "a user's"


def _told(path: Path) -> object:
    with safe_open(path, framework="pt") as file:
        texts = file.metadata() or {}
    told: object = json.loads(texts["fundl.tree"])
    return told


def test_a_file_tells_what_it_holds(path: Path) -> None:
    model = initialize(key(0), compose(linear(2, 3, bias=False), ReLU(), Dropout(0.5)))
    save(path, model)
    with safe_open(path, framework="pt") as file:
        texts = file.metadata() or {}
    assert texts["fundl.version"] == fundl.__version__
    spread = {"VarianceScaling": {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}}
    assert json.loads(texts["fundl.tree"]) == [
        {"Linear": {"weight": "float32[3, 2]", "bias": None, "weight_init": spread, "bias_init": spread}},
        "ReLU",
        {"Dropout": {"rate": 0.5, "key": None}},
    ]


def test_containers_and_keys_of_all_kinds_are_told(path: Path) -> None:
    saved = {"a": [torch.ones(1), None], "b": OrderedDict({2: torch.ones(2), (1, "x"): ()}), "c": {3: torch.zeros(1)}}
    save(path, saved)
    assert _told(path) == {
        "dict": {
            "a": {"list": ["float32[1]", None]},
            "b": {"OrderedDict": [[2, "float32[2]"], [[1, "x"], []]]},
            "c": {"dict": [[3, "float32[1]"]]},
        }
    }


@saved_as("no numbers")
def no_numbers() -> Tensor:
    return torch.zeros(0)


@pytest.mark.parametrize(
    ("make", "word"), [(None, ""), (list, "list"), (dict, "dict"), (int, "int"), (no_numbers, "no numbers")]
)
def test_a_dict_with_defaults(path: Path, make: Callable[[], object] | None, word: str) -> None:
    model = initialize(key(0), linear(2, 3))
    saved: defaultdict[object, object] = defaultdict(make, {"b": (model,), 3: model})
    save(path, {"all": saved})
    again = load_model(path, part="['all']['b']")
    require_the_same(again, (model,))
    found = load_model(path, part="['all'][3]")
    require_the_same(found, model)
    told = _told(path)
    assert isinstance(told, dict)
    (inside,) = told.values()
    assert [*inside["all"]] == [f"defaultdict({word})"]


def test_a_record_with_a_dict_with_defaults(path: Path) -> None:
    saved = WithParts(defaultdict(no_numbers, {"a": torch.ones(2), "b": torch.zeros(1)}))
    save(path, saved)
    again = load_model(path)
    assert isinstance(again, WithParts)
    assert type(again.parts) is defaultdict
    assert again.parts.default_factory is no_numbers
    assert tree.equal(again, saved)


def test_what_makes_missing_values_is_not_looked_for(path: Path) -> None:
    save(path, WithParts(defaultdict(lambda: torch.zeros(1), {"a": torch.ones(2)})))
    with pytest.raises(ValueError, match=r"at \.parts, a defaultdict has its missing values made by .*<lambda>, which is not"):
        load_model(path)


def test_a_tensor_that_layers_share_is_one_again(path: Path) -> None:
    layer = initialize(key(0), linear(3, 3))
    save(path, (layer, ReLU(), layer))
    again = load_model(path)
    assert isinstance(again, tuple)
    first, _, last = again
    assert isinstance(first, Linear)
    assert isinstance(last, Linear)
    assert first.weight is last.weight
    assert first.bias is last.bias
    assert tree.equal(again, (layer, ReLU(), layer))
    assert {"[0].weight", "[2].weight"} < load_file(path).keys()  # for whoever reads it by names


def test_the_model_of_a_training_state(path: Path) -> None:
    model = initialize(key(0), compose(linear(2, 3), ReLU(), linear(3, 1)))
    save(path, train_state(key(1), model, adam(0.1)))
    require_the_same(load_model(path, part=".model"), model)
    require_the_same(load_model(path, part=".model[2]"), model[2])
    with pytest.raises(ValueError, match=r'holds TrainState, which is no model: .* part="\.model" for a TrainState'):
        load_model(path)
    with pytest.raises(ValueError, match=r"has no part '\.models': at its root there are \.model, \.optimizer, \.key, \.step"):
        load_model(path, part=".models")


def test_an_unknown_class_is_told_and_not_looked_for(path: Path) -> None:
    model = (ReLU(), Unknown(torch.ones(2)))
    save(path, model)
    name = f"{__name__}.Unknown"
    with pytest.raises(
        ValueError, match=rf"at \[1\], there is a {name}, .* write saved_as\('{name}'\) above the class Unknown"
    ):
        load_model(path)
    require_the_same(load_model(path, part="[0]"), ReLU())
    saved_as(name)(Unknown)
    try:
        require_the_same(load_model(path), model)
    finally:
        del _registry._KNOWN[name], _registry._NAMES[Unknown]


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.nn.Linear", "fundl.Linear", "save", "Layer", "Record", ""]
)
def test_no_name_leads_to_what_is_not_registered(path: Path, name: str) -> None:
    tellings: list[object] = [name, {name: {}}, {name: {"command": "true"}}, [{"test: scale": {"rule": {"function": name}}}]]
    for told in tellings:
        write(path, {"weight": torch.ones(1)}, told)
        with pytest.raises(ValueError, match="cannot be made a model"):
            load_model(path)


def write(path: Path, tensors: dict[str, Tensor], told: object) -> None:
    """A file of another program that says the same kind of things, without checksums."""
    save_file(tensors, path, metadata={"fundl.tree": json.dumps(told)})


SCALE: Final = {"weight": "float32[2]", "power": 1.0, "rule": None, "shape": [1, 2], "kind": {"dtype": "float32"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "float32[3]"}, r"at \.weight, the file has float32\[2\], where float32\[3\] is to be"),
        ({"weight": None}, "test: scale cannot have None for weight"),
        ({"power": "1"}, "test: scale cannot have '1' for power"),
        ({"power": True}, "test: scale cannot have True for power"),
        ({"shape": [1, 2.5]}, r"test: scale cannot have \(1, 2.5\) for shape"),
        ({"kind": {"dtype": "float31"}}, "{'dtype': 'float31'} says of no static field"),
        ({"kind": {"dtype": "nn"}}, "{'dtype': 'nn'} says of no static field"),
        ({"rule": {"function": "os.system"}}, "there is a function os.system, which is not registered"),
        ({"rule": {"function": "Linear"}}, "there is a function Linear, which is not registered"),
        ({"other": 1}, "test: scale has the fields weight, power, rule, shape, kind, but the file has .* other"),
    ],
)
def test_fields_that_cannot_be_are_told(path: Path, changes: dict[str, object], message: str) -> None:
    write(path, {".weight": torch.ones(2)}, {"test: scale": {**SCALE, **changes}})
    with pytest.raises(ValueError, match=rf"{path} cannot be made a model: .*{message}"):
        load_model(path)


def test_a_field_that_a_class_got_later_is_what_it_was_before(path: Path) -> None:
    """A file of an earlier version says nothing of it; what has no default must be there."""
    write(path, {".weight": torch.ones(2, 3)}, {"Embedding": {"weight": "float32[2, 3]"}})
    assert tree.equal(load_model(path), Embedding(torch.ones(2, 3)))
    write(path, {".weight": torch.ones(2, 3)}, {"Linear": {"weight": "float32[2, 3]"}})
    with pytest.raises(
        ValueError, match=r"Linear has the fields weight, bias, .*, but the file has weight: it may be of another"
    ):
        load_model(path)


@pytest.mark.parametrize(
    "told", [3, True, {}, {"a": {}, "b": {}}, {"same as": "x"}, {"list": {}}, {"dict": [[1]]}, {"ReLU": 1}, "x[y"]
)
def test_what_says_of_no_tree_is_told(path: Path, told: object) -> None:
    write(path, {}, told)
    with pytest.raises(ValueError, match=r"cannot be made a model|holds .* which is no model"):
        load_model(path)


def test_files_that_do_not_say_what_they_hold(path: Path) -> None:
    save_file({"[0].weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"does not say of what layers its model is made: load it with load\(path, like\)"):
        load_model(path)
    save_file({"[0].weight": torch.ones(1)}, path, metadata={"fundl.tree": "["})
    with pytest.raises(ValueError, match="is damaged: what it says of its tree is not JSON"):
        load_model(path)
    write(path, {"[0].weight": torch.ones(1)}, ["ReLU"])
    with pytest.raises(ValueError, match=r"has a tensor at \[0\].weight, of which its tree says nothing"):
        load_model(path)


def test_a_part_that_was_saved_makes_no_model(path: Path) -> None:
    model = initialize(key(0), compose(linear(2, 3), linear(3, 1)))
    save(path, model, where="[1]")
    with pytest.raises(ValueError, match=r"at \[0\].weight, the file has no tensor, only a part of the tree was saved"):
        load_model(path)
    require_the_same(load_model(path, part="[1]"), model[1])


def test_a_configured_loss_is_made_again(path: Path) -> None:
    save(path, Configured(torch.ones(2), functools.partial(mse, reduction="sum")))
    again = load_model(path)
    assert isinstance(again, Configured)
    assert isinstance(again.rule, functools.partial)
    assert (again.rule.func, again.rule.args, again.rule.keywords) == (mse, (), {"reduction": "sum"})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda x: x,
            r"there is a function tests.test_load_model.<lambda>, which is not registered: give it a name with def, and that",
        ),
        (b"bytes", r"there is a builtins.bytes in a static field, which files cannot tell of: load it with load\(path, like\)"),
        (functools.partial(print, 1), "there is a builtins.builtin_function_or_method in a static field"),
    ],
)
def test_static_fields_that_files_cannot_tell_of(path: Path, rule: object, message: str) -> None:
    model = Configured(torch.ones(2), rule)
    save(path, model)
    assert tree.equal(load(path, model), model)
    with pytest.raises(ValueError, match=rf"at \.rule, {message}"):
        load_model(path)


# --- Names ------------------------------------------------------------------------------------------------------------


def test_names_of_the_library_are_of_one_thing_each() -> None:
    names = _registry._library()
    assert {"Linear", "BatchNorm", "TrainState", "VarianceScaling", "mse", "is_matrix"} < names.keys()
    assert names["BatchNorm"] is BatchNorm
    found: dict[str, object] = {}
    for name, value in names.items():
        assert found.setdefault(name, value) is value
        assert _registry.name_in_files(value) == name
    assert not {"save", "load", "fit", "Layer.__init__"} & names.keys()


def test_what_cannot_be_registered_is_told() -> None:
    for name in ("", "list", "a[0]"):
        with pytest.raises(ValueError, match="a name in files is a text without brackets"):
            saved_as(name)
    with pytest.raises(ValueError, match=r"the name 'Linear' is taken by fundl.layers.linear.Linear: choose another for"):
        saved_as("Linear")(Scale)
    with pytest.raises(ValueError, match="the name 'test: scale' is taken by"):
        saved_as("test: scale")(Half)
    with pytest.raises(TypeError, match=r"and Plain is none \(yet\): write it above @attrs.frozen"):

        @saved_as("plain")
        class Plain(Layer[Tensor]):
            """Not finished."""

    with pytest.raises(TypeError, match="registers a class or a function, not <built-in"):
        saved_as("len")(len)
    assert saved_as("test: towers")(Towers) is Towers


def test_a_class_that_is_made_again_takes_the_name_over() -> None:
    def made() -> type[Layer[Tensor]]:
        @saved_as("test: again")
        @attrs.frozen(eq=False)
        class Again(Scale):
            pass

        return Again

    first, second = made(), made()
    assert first is not second
    assert _registry.known("test: again") is second


def test_load_fills_what_load_model_makes(path: Path) -> None:
    model = initialize(key(0), compose(linear(2, 3), ReLU()))
    save(path, model)
    assert tree.equal(load(path, compose(linear(2, 3), ReLU())), load_model(path))
