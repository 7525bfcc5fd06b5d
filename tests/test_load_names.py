"""Files of other programs, by maps of names; and parts of trees alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fundl import (
    ReLU,
    Unmatched,
    compose,
    embedding,
    initialize,
    key,
    layer_norm,
    linear,
    load,
    repeat,
    residual,
    save,
    tree,
)

Names = dict[str | re.Pattern[str], str | tuple[str, Callable[[Tensor], Tensor]] | None]
SHAPE_ONLY: Final = compose(linear(2, 3), ReLU(), linear(3, 1))
MODEL: Final = initialize(key(0), SHAPE_ONLY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "other.safetensors"


def theirs() -> dict[str, Tensor]:
    """The model as another program names it, which has its weights the other way round."""
    first, _, last = MODEL
    assert first.bias is not None
    assert last.bias is not None
    return {
        "net.0.weight": first.weight.t().contiguous(),
        "net.0.bias": first.bias,
        "net.2.weight": last.weight.t().contiguous(),
        "net.2.bias": last.bias,
    }


def given(leaf: Tensor | None) -> Tensor:
    assert leaf is not None
    return leaf.clone()


# --- Names ------------------------------------------------------------------------------------------------------------


def test_a_map_may_have_a_name_of_its_own(path: Path) -> None:
    """A checker takes it for a dict[str, str], which no Mapping[str | Pattern[str], ...] is."""
    save_file({name.removeprefix("net."): bias for name, bias in theirs().items() if "bias" in name}, path)
    names = {"*.bias": "[*].bias"}
    again, rest = load(path, MODEL, rename=names, strict=False)
    assert rest.missing == ("[0].weight", "[2].weight")
    assert tree.equal(again, MODEL)


def test_stars_and_changes(path: Path) -> None:
    save_file(theirs(), path)
    again = load(path, SHAPE_ONLY, rename={"net.*.weight": ("[*].weight", torch.t), "net.*.*": "[*].*"})
    assert tree.equal(again, MODEL)
    assert all(leaf.is_contiguous() for leaf in tree.leaves(again))


def test_regular_expressions(path: Path) -> None:
    save_file(theirs(), path)
    rename: Names = {
        re.compile(r"net\.(\d+)\.weight"): (r"[\1].weight", torch.t),
        re.compile(r"net\.(?P<n>\d+)\.bias"): r"[\g<n>].bias",
    }
    assert tree.equal(load(path, SHAPE_ONLY, rename=rename), MODEL)


def test_a_function_of_names(path: Path) -> None:
    first = {"0.weight": MODEL[0].weight, "0.scale": torch.ones(1)}
    save_file(first, path)
    like = (linear(2, 3, bias=False),)
    (again,) = load(path, like, rename=lambda name: None if "scale" in name else f"[{name[0]}]{name[1:]}")
    assert torch.equal(again.weight, MODEL[0].weight)


def test_none_leaves_out(path: Path) -> None:
    save_file({**theirs(), "net.0.mask": torch.ones(1)}, path)
    names: Names = {"net.*.weight": ("[*].weight", torch.t), "*.mask": None, "net.*.mask": None, "net.*.bias": "[*].bias"}
    assert tree.equal(load(path, SHAPE_ONLY, rename=names), MODEL)


def test_blocks_of_gpt_are_stacked(path: Path) -> None:
    """The names and the transposed weights of GPT-2, whose blocks have a number each."""
    like = compose(embedding(7, 4), repeat(3, residual(layer_norm(4), linear(4, 4))), layer_norm(4))
    model = initialize(key(0), like)
    block = model[1].blocks
    others: dict[str, Tensor] = {"transformer.wte.weight": model[0].weight}
    for number, (part,) in enumerate(block):
        norm, dense = part.layers
        others[f"transformer.h.{number}.ln_1.weight"] = given(norm.weight)
        others[f"transformer.h.{number}.ln_1.bias"] = given(norm.bias)
        others[f"transformer.h.{number}.mlp.c_proj.weight"] = dense.weight.t().contiguous()
        others[f"transformer.h.{number}.mlp.c_proj.bias"] = given(dense.bias)
    others |= {"transformer.ln_f.weight": given(model[2].weight), "transformer.ln_f.bias": given(model[2].bias)}
    save_file(others, path)
    named: Names = {
        re.compile(r"transformer\.h\.(\d+)\.ln_1\.(\w+)"): r"[1].stacked[0].layers[0].\2[\1]",
        "transformer.wte.weight": "[0].weight",
        "transformer.h.*.mlp.c_proj.weight": ("[1].stacked[0].layers[1].weight[*]", torch.t),
        "transformer.h.*.mlp.c_proj.bias": "[1].stacked[0].layers[1].bias[*]",
        "transformer.ln_f.*": "[2].*",
    }
    assert tree.equal(load(path, like, rename=named), model)
    del others["transformer.h.1.ln_1.bias"]
    save_file(others, path)
    again, rest = load(path, model, rename=named, strict=False)
    assert rest == Unmatched(missing=("[1].stacked[0].layers[0].bias[1]",))
    assert tree.equal(again, model)
    with pytest.raises(ValueError, match=re.escape("at [1].stacked[0].layers[0].bias, the file has only some of its rows")):
        load(path, like, rename=named)


def test_rows_of_another_shape(path: Path) -> None:
    save_file({"0": torch.ones(2), "1": torch.ones(3)}, path)
    _, rest = load(path, {"a": torch.ones(2, 2)}, rename={"*": "['a'][*]"}, strict=False)
    assert rest.different == ("at ['a'], the file has float32[3], and like has float32[2, 2]",)
    _, rest = load(path, {"a": torch.ones(1, 2)}, rename={"*": "['a'][*]"}, strict=False)
    assert rest.unexpected == ("1",)
    _, rest = load(path, torch.ones(()), rename={"*": "[*]"}, strict=False)
    assert rest == Unmatched(missing=("",), unexpected=("0", "1"))


def test_maps_that_cannot_be_are_told(path: Path) -> None:
    save_file(theirs(), path)
    with pytest.raises(ValueError, match=r"two tensors of the file are to go to x, net.0.bias and net.0.weight: give rename"):
        load(path, SHAPE_ONLY, rename={"net.0.*": "x"})
    with pytest.raises(ValueError, match=r"rename has '\[\*\]\.\*' with 2 stars, but in the name that leads to it only 1"):
        load(path, SHAPE_ONLY, rename={"net.*.bias": "[*].*"})
    with pytest.raises(TypeError, match=r"rename's function for net.0.bias must make a tensor of a tensor, not 'bias'"):
        load(path, SHAPE_ONLY, rename={"net.0.bias": ("[0].bias", wrong)})
    with pytest.raises(RuntimeError, match="shape") as info:
        load(path, SHAPE_ONLY, rename={"net.0.bias": ("[0].bias", lambda bias: bias.reshape(7))})
    assert "as rename's function changes net.0.bias, float32[3]" in info.value.__notes__
    save_file({"0": torch.ones(2), "all": torch.ones(1, 2)}, path)
    with pytest.raises(ValueError, match=r"\['a'\] is to be loaded both as a whole and row by row"):
        load(path, {"a": torch.ones(1, 2)}, rename={"all": "['a']", "*": "['a'][*]"})


def wrong(_: Tensor) -> Tensor:
    made: Tensor = eval("'bias'")  # what a program without types could give
    return made


# --- What does not match ----------------------------------------------------------------------------------------------


def test_what_did_not_match_is_given_back(path: Path) -> None:
    save(path, (MODEL[0], ReLU(), linear_of(4), torch.ones(1)))
    like = initialize(key(1), (*SHAPE_ONLY, linear(1, 1, bias=False)))
    again, rest = load(path, like, strict=False)
    assert rest
    assert rest == Unmatched(
        missing=("[3].weight",),
        unexpected=("[3]",),
        different=("at [2].weight, the file has float32[1, 4], and like has float32[1, 3]",),
    )
    assert tree.equal(again[0], MODEL[0])
    assert again[2].weight is like[2].weight
    assert again[3].weight is like[3].weight
    assert not load(path, (linear(2, 3),), strict=False)[1].missing


def linear_of(features: int) -> object:
    return initialize(key(0), linear(features, 1))


def test_nothing_is_unmatched_where_all_fits(path: Path) -> None:
    save(path, MODEL)
    again, rest = load(path, SHAPE_ONLY, strict=False)
    assert not rest
    assert tree.equal(again, MODEL)


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_a_part_by_its_path(path: Path) -> None:
    save(path, MODEL, where="[2]")
    assert load_file(path).keys() == {"[2].weight", "[2].bias"}
    like = initialize(key(1), SHAPE_ONLY)
    again = load(path, like, where="[2]")
    assert tree.equal(again[2], MODEL[2])
    assert again[0].weight is like[0].weight
    with pytest.raises(ValueError, match=r"at \[0\].weight, the file has nothing"):
        load(path, like)


def test_leaves_that_a_function_chooses(path: Path) -> None:
    save(path, MODEL, where=lambda name, _: name.endswith("bias"))
    assert load_file(path).keys() == {"[0].bias", "[2].bias"}
    like = initialize(key(1), SHAPE_ONLY)
    again = load(path, like, where=lambda _, leaf: leaf.ndim == 1)
    assert tree.equal((again[0].bias, again[2].bias), (MODEL[0].bias, MODEL[2].bias))
    assert again[2].weight is like[2].weight


def test_a_part_of_a_whole_file(path: Path) -> None:
    save(path, (*MODEL, linear_of(1)))
    again = load(path, SHAPE_ONLY, where="[0]")
    assert tree.equal(again[0], MODEL[0])
    assert again[2].weight.is_meta


def test_a_path_is_that_of_a_whole_step(path: Path) -> None:
    save(path, {"a": torch.ones(1), "ab": torch.ones(2)}, where="['a']")
    assert load_file(path).keys() == {"['a']"}
    save(path, [torch.ones(1)] * 11, where="[1]")
    assert load_file(path).keys() == {"[1]"}


def test_a_part_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing to save, no leaf is in '\[3\]'; the tree has \[0\].weight, "):
        save(path, MODEL, where="[3]")
    with pytest.raises(ValueError, match=r"there is nothing to save, where chooses no leaf"):
        save(path, MODEL, where=lambda _name, _leaf: False)
    save(path, MODEL)
    with pytest.raises(ValueError, match=r"there is nothing to load, no leaf of like is in '\[3\]'"):
        load(path, MODEL, where="[3]")
    assert not list(path.parent.glob("*.tmp"))
