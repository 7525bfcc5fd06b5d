"""What `help` says: of each public name its signature and its documentation, and nothing that was written for Python alone."""

import doctest
import inspect
import pydoc
from typing import Annotated, get_args, get_origin, get_type_hints

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

import fundl
from fundl import Batches, Compiled, Dropout, Epoch, Key, Layer, Linear, Model, Rate, Reduction, Schedule, TrainState
from fundl._common import aliases
from fundl.metrics import metric
from tests.face import PUBLIC

PLAIN = {
    "BUFFER",  # a constant
    "Fans",  # a named tuple, which has the methods of tuples
    "Record",  # what is looked for in trees at each step: a class of another kind takes longer to find there
    "Shape",  # the types of shapes are loaded by themselves, without the rest of fundl
}
INTERNALS = ("__init__", "__setattr__", "__weakref__", "__attrs", "attrs generated", "_is_contract")
INTERNALS = ("__init__(self", "__setattr__", "__weakref__", "__attrs", "attrs generated", "_is_contract")
ALIASES = [name for name in PUBLIC if not inspect.isclass(value := getattr(fundl, name)) and hasattr(value, "__metadata__")]


def helped(name: str) -> str:
    return pydoc.plain(pydoc.render_doc(getattr(fundl, name)))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in PLAIN and not inspect.ismodule(getattr(fundl, name))])
def test_help_shows_what_a_reader_wants(name: str) -> None:
    value: object = getattr(fundl, name)
    said, documented = helped(name), inspect.getdoc(value) or ""
    assert documented.splitlines()[0] in said
    assert not [word for word in INTERNALS if word in said]
    if inspect.isclass(value):
        assert f"{name}(" in said or not inspect.signature(value).parameters
        assert said.count("\n") < 2 * documented.count("\n") + 150


def test_help_of_all_can_be_read() -> None:
    said = pydoc.plain(pydoc.render_doc(fundl))
    assert said.count("\n") < 13_000  # from Python 3.13 on, long signatures take more than a line
    assert said.index("train_step") < 2000  # an overview comes first


def test_a_class_lists_what_it_documents() -> None:
    assert {*dir(Linear)} == set()
    assert {"numbers"} == {*dir(Epoch)}
    assert {"__call__", "load", "save", "traces"} == {*dir(Compiled)}
    assert {"__call__", "at"} == {*dir(Schedule)}
    assert {*dir(TrainState)} == set()
    assert {"forward", "backward", "backward_params", "backward_input", "output_shape"} <= {*dir(Layer)}
    assert {"weight", "forward", "gradient", "children"} <= {*dir(fundl.linear(2, 3))}  # completion goes on knowing all


def test_a_layer_of_ones_own_lists_what_it_documents() -> None:
    @attrs.frozen(eq=False)
    class Twice(Layer[tuple[()]]):
        def doubled(self) -> "Twice":
            """Another one."""
            return self

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, tuple[()]]:
            return 2 * x, ()

        @override
        def backward(self, residuals: tuple[()], grad: Tensor) -> tuple["Twice", Tensor]:
            return self.gradient(), 2 * grad

    assert dir(Twice) == ["doubled"]
    Twice().gradient()  # writes the function, which is no news
    assert dir(Twice) == ["doubled"]


def test_help_of_layer_says_what_all_have() -> None:
    said = helped("Layer")
    assert all(f"{name}(self" in said for name in ("forward", "backward", "backward_params", "backward_input", "output_shape"))


# --- Aliases -------------------------------------------------------------------------------------------------------------


def test_aliases_are_found() -> None:
    assert {"Batches", "Key", "Loss", "Metric", "Model", "Predicate", "Rate", "Reduction", "Step", "Tensors"} <= {*ALIASES}


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_are_documented(name: str) -> None:
    alias: object = getattr(fundl, name)
    documented = inspect.getdoc(alias)
    assert documented
    assert ":" not in documented.splitlines()[0]  # Sphinx would take what is before it for a type
    assert f"{name} = typing.Annotated[" in helped(name)
    test = doctest.DocTestParser().get_doctest(documented, {}, name, None, None)
    assert doctest.DocTestRunner().run(test).failed == 0


def test_aliases_mean_what_they_stand_for() -> None:
    @attrs.frozen(eq=False)
    class Around(Layer[object]):
        """A record finds its children by what their annotations mean."""

        inner: Model
        key: Key | None = None
        rate: Rate = 0.1
        reduction: Reduction = "mean"

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, object]:
            return fundl.forward(self.inner, x)

        @override
        def backward(self, residuals: object, grad: Tensor) -> tuple["Around", Tensor]:
            return self, grad

    assert Around.children == ("inner", "key")
    assert fundl.apply(Around(Dropout(0.5)), torch.ones(2)).tolist() == [1, 1]

    def function(key: Key, data: Batches[Tensor, Tensor]) -> None: ...

    assert get_type_hints(function)["key"] is Tensor
    assert "Annotated" not in str(get_type_hints(function)["data"])


def test_an_alias_whose_source_is_not_there_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_source(_module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", no_source)
    found = aliases.documented("Metric", metric.Metric)
    assert get_origin(found) is Annotated
    assert get_args(found)[0] == metric.Metric
