"""The site's reference has each public name, once, and nothing else."""

import inspect
import re
from collections import Counter
from itertools import chain
from types import ModuleType

import fundl
from fundl.interop import aoti, hugging_face, onnx, torch_nn, torch_vision
from tests.face import PUBLIC
from tests.pages import ROOT

DIRECTIVE = re.compile(r"^```\{public\}\n(.*?)^```", re.MULTILINE | re.DOTALL)


def of_module(module: ModuleType) -> set[str]:
    """The names that a user reads with a module's, but for those that fundl has itself, `Key` with its documentation."""
    names = vars(module).get("__all__") or [name for name in dir(module) if not name.startswith("_")]
    own = {name for name in names if not inspect.ismodule(getattr(module, name))}
    prefix = module.__name__.removeprefix("fundl.")
    return {f"{prefix}.{name}" for name in own if getattr(fundl, name, None) is not getattr(module, name) and name != "Key"}


def test_the_reference_has_each_public_name_once() -> None:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    shown = Counter(chain.from_iterable(block.split() for page in pages for block in DIRECTIVE.findall(page.read_text())))
    modules = [
        fundl.distributed,
        fundl.ensemble,
        fundl.language,
        fundl.random,
        fundl.shapes,
        fundl.tree,
        torch_nn,
        hugging_face,
        torch_vision,
        onnx,
        aoti,
    ]
    public = {*PUBLIC}.union(*map(of_module, modules))
    assert {name: count for name, count in shown.items() if count > 1} == {}
    assert public - {*shown} == set()
    assert {*shown} - public == set()
