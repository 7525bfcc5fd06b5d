"""A torch that is newer than those that are known: what it lacks is named, and nothing stops that need not be compiled."""

import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import torch
import torch._inductor.config
from torch import Tensor

import fundl
from fundl import fit, initialize, jit, key, linear, mse, scan, sgd, train_state, train_step
from fundl._common import kernels
from fundl._compiling import inductor, lowering, torch_private, tracing
from fundl._compiling.torch_private import UnknownTorchError
from fundl.interop import aoti
from fundl.interop.aoti import _torch
from fundl.training._step_runner import Compile

ROOT: Final = Path(__file__).parent.parent
LACKS: Final = (
    r"fundl compiles with torch 2\.11 to 2\.14, and torch .* lacks torch\.no_such_thing: use one of those versions, or a newer"
)
HEADER: Final = "torch/csrc/inductor/aoti_package/model_package_loader.h"
"""Where programs in C++ find what opens a package."""


@pytest.fixture(params=[(torch_private, "CALLED"), (torch_private, "NAMES"), (inductor, "NAMES"), (lowering, "NAMES")], ids=str)
def lacking(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without something that one of the modules needs; and nothing is compiled already."""
    module, name = request.param
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))
    for each in {name, "NAMES"}:
        monkeypatch.setattr(module, each, (*getattr(module, each), "torch.no_such_thing"))
    torch_private._warn_of_what_is_missing.cache_clear()


def run(compiling: Compile) -> tuple[object, int]:
    data = [(torch.ones(4, 2), torch.ones(4, 1))] * 3
    state = train_state(key(1), initialize(key(0), linear(2, 1)), sgd(0.1))
    after, history = fit(train_step(mse, sgd(0.1)), state, data, epochs=2, compile=compiling, progress=False)
    return after.model, len(history)


@pytest.mark.usefixtures("lacking")
def test_functions_run_as_they_are() -> None:
    compiled, scanned = jit(torch.neg), scan(lambda state, x: (state + x, x))
    with pytest.warns(RuntimeWarning, match=f"neg is not compiled, and runs as it is: {LACKS}"):
        assert torch.equal(compiled(torch.ones(2)), -torch.ones(2))
    with pytest.warns(RuntimeWarning, match=f"^a scan of .* is not compiled, and runs as it is: {LACKS}"):
        assert torch.equal(scanned(torch.ones(2), torch.ones(3, 2))[0], torch.full((2,), 4.0))
    with warnings.catch_warnings():  # it is told once
        warnings.simplefilter("error")
        assert torch.equal(compiled(torch.ones(2)), -torch.ones(2))
        assert torch.equal(scanned(torch.ones(2), torch.ones(3, 2))[0], torch.full((2,), 4.0))


@pytest.mark.usefixtures("lacking")
def test_fit_warns_once_unless_it_must_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(False)
    monkeypatch.setattr("fundl.training._step_runner._COST", 0)
    with pytest.warns(RuntimeWarning) as caught:
        found, epochs = run("auto")
    assert len(caught) == 1
    assert re.search(rf"step is not compiled, and runs as it is: {LACKS}", str(caught[0].message))
    assert fundl.tree.equal(found, expected)
    assert epochs == 2
    monkeypatch.setattr(warnings, "warn", lambda *_, **__: None)
    with pytest.raises(UnknownTorchError, match=LACKS):
        run(True)


WITHOUT: Final = """
import pkgutil, sys, warnings
import torch, torch.overrides, torch.utils._device
for name in sys.argv[1:]:
    owner, _, last = name.rpartition(".")
    delattr(pkgutil.resolve_name(owner), last)
import fundl
warnings.simplefilter("ignore")
model = fundl.initialize(fundl.key(0), fundl.linear(2, 1))
compiled = fundl.jit(fundl.apply)
assert torch.equal(compiled(model, torch.ones(1, 2)), fundl.apply(model, torch.ones(1, 2)))
state, step = fundl.train_state(fundl.key(1), model, fundl.sgd(0.1)), fundl.train_step(fundl.mse, fundl.sgd(0.1))
data = [(torch.ones(4, 2), torch.ones(4, 1))] * 3
fundl.fit(step, state, data, epochs=1, progress=False)
try:
    fundl.fit(step, state, data, epochs=1, compile=True, progress=False)
except ImportError as error:
    print(error)
"""


def test_what_is_truly_missing_is_missed_by_what_compiles_alone() -> None:
    """Those names are taken away that torch itself does without in an eager program."""
    names = [name for name in torch_private.CALLED if "overrides" not in name]
    result = subprocess.run([sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=True)
    assert f"lacks {', '.join(names)}: use one of" in result.stdout


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("version", "warned"), [("2.11.0", False), ("2.14.9+cu130", False), ("2.15.0.dev1", True), ("3.0", True)]
)
def test_a_newer_torch_compiles_with_a_warning(version: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    torch_private._warn_of_a_newer.cache_clear()
    compiled = jit(torch.neg)
    message = (
        rf"fundl is tested with torch 2\.11 to 2\.14, and this is torch {re.escape(version)}: what is compiled may be wrong"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(compiled(torch.ones(2)), -torch.ones(2))
        jit(torch.neg)(torch.ones(2))
    assert [bool(re.match(message, str(each.message))) for each in caught] == [True] * warned
    assert compiled.traces[0].compiled
    torch_private._warn_of_a_newer.cache_clear()


def test_the_oldest_is_the_one_that_is_asked_for() -> None:
    dependencies: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"torch>={'.'.join(map(str, torch_private.OLDEST))}" in dependencies


@pytest.mark.skipif(torch.__version__ < "2.13", reason="it is told nothing that it does not know")
def test_the_compiler_knows_what_it_is_told() -> None:
    assert {*inductor._SETTINGS} <= {*torch._inductor.config.get_config_copy()}


def test_all_is_there() -> None:
    inductor.require_known()


def test_packages_say_what_torch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "NAMES", (*_torch.NAMES, "torch.no_such_thing"))
    with pytest.raises(UnknownTorchError, match=LACKS):
        aoti.export(tmp_path / "no.pt2", torch.neg, torch.ones(2))
    (tmp_path / "some.pt2").write_bytes(b"")
    with pytest.raises(UnknownTorchError, match=LACKS):
        aoti.load(tmp_path / "some.pt2", like=torch.ones(2))


def test_all_that_packages_need_is_there() -> None:
    torch_private.require_known(_torch.NAMES)
    opens = str(torch._C._aoti.AOTIModelPackageLoader.__init__.__doc__)
    assert re.search(r"\(self: .*Loader, \w+: str, \w+: str, \w+: bool, \w+: .*, \w+: .*\) -> None", opens), (
        f"what opens packages takes other arguments in this torch, see fundl/interop/aoti/_torch.py: {opens}"
    )
    header = Path(torch.__file__).parent / "include" / HEADER
    assert header.exists(), f"programs in C++, and examples/cpp/train.cpp, include {HEADER}, which this torch has elsewhere"
    text = " ".join(header.read_text().split())
    for used in (
        "class TORCH_API AOTIModelPackageLoader",
        "const std::string& model_package_path,",
        "std::unordered_map<std::string, std::string> get_metadata()",
        "std::vector<at::Tensor> run( const std::vector<at::Tensor>& inputs,",
    ):
        assert used in text, f"programs in C++, and examples/cpp/train.cpp, need `{used}`, which this torch's {HEADER} lacks"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_stand_ins_for_the_results_of_attention_are_of_their_dtypes(dtype: torch.dtype) -> None:
    def attention(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        (q,) = tensors
        return kernels.attention(q, q, q, 0, False, attn_mask=None)

    q = torch.ones(1, 3, 2, 4, dtype=dtype).transpose(1, 2)
    tracing.prepare()
    graph = tracing.trace(attention, [q]).graph
    (outputs,) = graph.module.graph.output_node().args
    assert isinstance(outputs, tuple | list)
    for output, right in zip(outputs, attention([q]), strict=True):
        seen = output.meta["val"]
        assert (seen.dtype, seen.shape, seen.stride()) == (right.dtype, right.shape, right.stride())
