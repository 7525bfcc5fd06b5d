"""Models of language from files of another program: logits held against formulas, and against transformers if it is there."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fundl import Model, apply, assert_trees_close, initialize, key, language, linear, rekey, tree
from fundl.interop import hugging_face
from fundl.interop.hugging_face import GPT2, Llama

TOKENS: Final = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(0))
SMALL_GPT2: Final = GPT2(vocabulary=31, positions=20, features=16, blocks=2, heads=4)
SMALL_LLAMA: Final = Llama(vocabulary=31, features=16, hidden=24, blocks=2, heads=4, key_value_heads=2)
KINDS: Final[Mapping[str, GPT2 | Llama]] = {
    "gpt2": SMALL_GPT2,
    "gpt2, other sizes": GPT2(
        vocabulary=31, positions=12, features=8, blocks=1, heads=2, hidden=12, activation="relu", eps=1e-3
    ),
    "llama": SMALL_LLAMA,
    "llama, all options": Llama(
        vocabulary=31,
        features=16,
        hidden=24,
        blocks=2,
        heads=4,
        head_features=6,
        rotary=500.0,
        eps=1e-4,
        projection_bias=True,
        output_bias=True,
        network_bias=True,
        is_tied=True,
        activation="gelu_pytorch_tanh",
    ),
    "llama, stretched": Llama(
        vocabulary=31, features=32, hidden=24, blocks=2, heads=2, rotary=100.0, stretch=(4.0, 0.5, 2.0, 16.0)
    ),
    "mistral": Llama(
        vocabulary=31, features=16, hidden=24, blocks=2, heads=4, key_value_heads=2, head_features=4, window=5, kind="mistral"
    ),
    "qwen2": Llama(
        vocabulary=31, features=16, hidden=24, blocks=2, heads=4, key_value_heads=1, projection_bias=True, kind="qwen2"
    ),
}

every_kind = pytest.mark.parametrize("sizes", KINDS.values(), ids=KINDS)


def drawn(sizes: GPT2 | Llama) -> Model:
    """A model with large weights and biases, so that what is amiss is seen."""
    model = initialize(key(1), sizes.model())
    return tree.map(
        lambda leaf: leaf + 0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel())), model
    )


# --- The formulas ------------------------------------------------------------------------------------------------------


def attended(q: Tensor, k: Tensor, v: Tensor, *, heads: int, few: int, window: int | None) -> Tensor:
    """Heads (B, T, H d), position by position."""
    batch, steps, width = q.shape
    size = width // heads
    out = torch.zeros(batch, steps, heads, size)
    q, k, v = (x.reshape(batch, steps, -1, size) for x in (q, k, v))
    for head in range(heads):
        own = head // (heads // few)
        for step in range(steps):
            first = 0 if window is None else max(0, step + 1 - window)
            scores = torch.einsum("bd,bsd->bs", q[:, step, head], k[:, first : step + 1, own]) / math.sqrt(size)
            out[:, step, head] = torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, first : step + 1, own])
    return out.flatten(2)


def of_gpt2(w: Mapping[str, Tensor], sizes: GPT2, tokens: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (sizes.features,), w[f"{name}.weight"], w[f"{name}.bias"], sizes.eps)

    def conv1d(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    for number in range(sizes.blocks):
        at = f"transformer.h.{number}"
        q, k, v = conv1d(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x)).chunk(3, -1)
        x = x + conv1d(f"{at}.attn.c_proj", attended(q, k, v, heads=sizes.heads, few=sizes.heads, window=None))
        inner = conv1d(f"{at}.mlp.c_fc", norm(f"{at}.ln_2", x))
        inner = inner.relu() if sizes.activation == "relu" else F.gelu(inner, approximate="tanh")
        x = x + conv1d(f"{at}.mlp.c_proj", inner)
    return norm("transformer.ln_f", x) @ w["transformer.wte.weight"].t()


def turned(x: Tensor, size: int, base: float, stretch: tuple[float, ...] | None) -> Tensor:
    """Features i and i + d/2 of each head as a complex number, turned."""
    heads = torch.unflatten(x, -1, (-1, 2, size // 2)).double()
    speeds = [base ** (-2 * pair / size) for pair in range(size // 2)]
    if stretch is not None:
        factor, low, high, length = stretch
        for pair, speed in enumerate(speeds):
            turns = length * speed / (2 * math.pi)
            smooth = (turns - low) / (high - low)
            slow = speed / factor if turns < low else (1 - smooth) * speed / factor + smooth * speed
            speeds[pair] = speed if turns > high else slow
    angles = torch.arange(x.shape[1]).double()[:, None, None] * torch.tensor(speeds, dtype=torch.float64)
    z = torch.complex(heads[..., 0, :], heads[..., 1, :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.stack((z.real, z.imag), -2).flatten(2).float()


def of_llama(w: Mapping[str, Tensor], sizes: Llama, tokens: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + sizes.eps).sqrt() * w[f"{name}.weight"]

    def affine(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    few = sizes.key_value_heads or sizes.heads
    size = sizes.head_features or sizes.features // sizes.heads
    x = w["model.embed_tokens.weight"][tokens]
    for number in range(sizes.blocks):
        at = f"model.layers.{number}"
        h = norm(f"{at}.input_layernorm", x)
        q, k, v = (affine(f"{at}.self_attn.{name}_proj", h) for name in "qkv")
        q, k = (turned(part, size, sizes.rotary, sizes.stretch) for part in (q, k))
        x = x + affine(f"{at}.self_attn.o_proj", attended(q, k, v, heads=sizes.heads, few=few, window=sizes.window))
        h = norm(f"{at}.post_attention_layernorm", x)
        gate = affine(f"{at}.mlp.gate_proj", h)
        gate = F.silu(gate) if sizes.activation == "silu" else F.gelu(gate, approximate="tanh")
        x = x + affine(f"{at}.mlp.down_proj", gate * affine(f"{at}.mlp.up_proj", h))
    last = "model.embed_tokens.weight" if sizes.is_tied else "lm_head.weight"
    return F.linear(norm("model.norm", x), w[last])


# --- Files -------------------------------------------------------------------------------------------------------------


@every_kind
def test_what_is_written_is_the_layout_and_is_read_again(sizes: GPT2 | Llama, tmp_path: Path) -> None:
    model = drawn(sizes)
    hugging_face.save(tmp_path / "model", model, sizes)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    logits = of_gpt2(weights, sizes, TOKENS) if isinstance(sizes, GPT2) else of_llama(weights, sizes, TOKENS)
    assert_trees_close(apply(model, TOKENS), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    again, same = hugging_face.load(tmp_path / "model")
    assert tree.equal(again, model)
    assert same.config() == sizes.config()


@every_kind
def test_what_is_read_is_stepped_and_writes(sizes: GPT2 | Llama) -> None:
    model = drawn(sizes)
    y, cache = language.prefill(model, TOKENS[:, :5], 12)
    rest, _ = language.step(model, TOKENS[:, 5:], cache)
    assert_trees_close(torch.cat((y, rest), 1), apply(model, TOKENS), rtol=1e-4, atol=1e-4)
    assert language.generate(key(0), model, TOKENS[:, :4], 5, top_p=0.9).shape == (2, 5)


def test_files_in_parts_and_with_shorter_names(tmp_path: Path) -> None:
    """As older files of GPT-2 are: without the first word, with masks; and as large ones are, in parts."""
    model = drawn(SMALL_GPT2)
    hugging_face.save(tmp_path, model, SMALL_GPT2)
    weights = load_file(tmp_path / "model.safetensors")
    shorter = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 20, 20).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file({**shorter, **masks, "lm_head.weight": weights["transformer.wte.weight"].clone()}, tmp_path / "model.safetensors")
    assert tree.equal(hugging_face.load(tmp_path)[0], model)
    parts = [dict(list(weights.items())[start::3]) for start in range(3)]
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{number}.safetensors")
    index = {name: f"model-{number}.safetensors" for number, part in enumerate(parts) for name in part}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert tree.equal(hugging_face.load(tmp_path)[0], model)


def test_dtypes_dropout_and_keys(tmp_path: Path) -> None:
    model = tree.cast_to(drawn(SMALL_LLAMA), torch.bfloat16)
    hugging_face.save(tmp_path, model, SMALL_LLAMA)
    assert tree.equal(hugging_face.load(tmp_path)[0], model)
    wide, _ = hugging_face.load(tmp_path, dtype=torch.float32, dropout=0.1)
    assert {leaf.dtype for leaf in tree.leaves(wide)} == {torch.float32}
    assert_trees_close(apply(wide, TOKENS), apply(tree.cast_to(model, torch.float32), TOKENS), rtol=1e-6, atol=1e-6)
    hugging_face.save(tmp_path, rekey(wide, key(0)), SMALL_LLAMA)
    assert tree.equal(hugging_face.load(tmp_path, dropout=0.1)[0], wide)


# --- What is refused ---------------------------------------------------------------------------------------------------


def changed(folder: Path, **entries: object) -> Path:
    """A folder whose config.json says something else."""
    hugging_face.save(folder, drawn(SMALL_LLAMA), SMALL_LLAMA)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; known here are gpt2, llama, mistral, qwen2"),
        ({"hidden_size": None}, "says nothing of hidden_size, which must be there"),
        ({"hidden_size": "16"}, "hidden_size must be of type int, not '16'"),
        ({"hidden_act": "swish"}, "the activation 'swish' is not known here; known are gelu, gelu_new"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type is 'yarn', but known here are default and llama3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling says nothing of low_freq_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a table, not 'linear'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types are of several kinds"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True, but only False is known here"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight is there, and belongs nowhere"),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is not there"),
        ({"intermediate_size": 25}, r"mlp.down_proj.weight is float32\[16, 24\], and must be of shape \(16, 25\)"),
    ],
)
def test_settings_and_files_that_are_not_known(entries: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        hugging_face.load(changed(tmp_path, **entries))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, which says what model it is"):
        hugging_face.load(tmp_path)
    changed(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        hugging_face.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a text of JSON"):
        hugging_face.load(tmp_path)
    with pytest.raises(ValueError, match=r"the model is not one of Llama\(.*are amiss"):
        hugging_face.save(tmp_path, initialize(key(0), linear(2, 3)), SMALL_LLAMA)
    with pytest.raises(ValueError, match=r"has no config\.json: transformers has both or neither"):
        Llama(vocabulary=3, features=4, hidden=4, blocks=1, heads=2, projection_bias=True).config()
    with pytest.raises(ValueError, match="kind must be one of llama, mistral, qwen2, not 'gemma'"):
        Llama(vocabulary=3, features=4, hidden=4, blocks=1, heads=2, kind="gemma")


# --- transformers ------------------------------------------------------------------------------------------------------


class Output(Protocol):
    logits: Tensor


class Theirs(Protocol):
    """A model of transformers."""

    def eval(self) -> "Theirs": ...
    def __call__(self, tokens: Tensor) -> Output: ...
    def save_pretrained(self, folder: Path, *, max_shard_size: str = ...) -> None: ...


@every_kind
def test_logits_are_those_of_transformers(sizes: GPT2 | Llama, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra, and not installed here")
    read: Callable[[Path], Theirs] = transformers.AutoModelForCausalLM.from_pretrained
    model = drawn(sizes)
    hugging_face.save(tmp_path / "ours", model, sizes)
    theirs = read(tmp_path / "ours").eval()
    with torch.no_grad():
        logits = theirs(TOKENS).logits
    assert_trees_close(apply(model, TOKENS), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert tree.equal(hugging_face.load(tmp_path / "theirs")[0], model)
