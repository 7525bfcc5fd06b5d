"""Models of images by the names of torchvision: logits held against formulas, and against torchvision if it is there."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fundl import (
    Model,
    apply,
    assert_trees_close,
    calibrate,
    cross_entropy,
    forward,
    initialize,
    key,
    rekey,
    track,
    tree,
    value_and_grad,
    with_statistics,
    without_statistics,
)
from fundl.interop import torch_vision
from fundl.interop.torch_vision import ResNet, ViT

IMAGES: Final = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KINDS: Final[Mapping[str, ResNet | ViT]] = {
    "basic": ResNet((1, 2, 1, 1), classes=5),
    "bottleneck": ResNet((2, 1, 1, 1), is_bottleneck=True, classes=5),
    "groups, dilated": ResNet(
        (1, 1, 2, 1), is_bottleneck=True, groups=4, width_per_group=8, classes=3, dilated=(False, True, True)
    ),
    "vit": ViT(image=32, patch=8, features=16, hidden=24, blocks=2, heads=4, classes=5),
    "vit, representation": ViT(image=32, patch=16, features=8, hidden=16, blocks=1, heads=2, classes=3, representation=6),
}

every_kind = pytest.mark.parametrize("sizes", KINDS.values(), ids=KINDS)


def drawn(sizes: ResNet | ViT) -> Model:
    """A model with values of its own everywhere, in statistics, too, so that what is amiss is seen."""
    model = with_statistics(initialize(key(1), sizes.model()))
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(2))
    return tree.map(
        lambda leaf: (leaf + 0.05 * draw(leaf.shape)).abs() if leaf.ndim == 1 else leaf + 0.02 * draw(leaf.shape), model
    )


def of(sizes: ResNet | ViT, tensors: Mapping[str, Tensor]) -> Model:
    """The model of a state."""
    model: Model = torch_vision.from_state_dict(tensors, sizes)
    return model


# --- The formulas ------------------------------------------------------------------------------------------------------


def of_resnet(w: Mapping[str, Tensor], sizes: ResNet, x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], None, stride, padding, dilation, groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (w[f"{name}.{of}"][:, None, None] for of in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.max_pool2d(norm("bn1", conv("conv1", x, stride=2, padding=3)).relu(), 3, 2, 1)
    dilation = 1
    for stage, count in enumerate(sizes.blocks):
        stride, before = 1 if stage == 0 else 2, dilation
        if stage and sizes.dilated[stage - 1]:
            stride, dilation = 1, 2 * dilation
        for number in range(count):
            at, s, d = f"layer{stage + 1}.{number}", stride if number == 0 else 1, dilation if number else before
            if sizes.is_bottleneck:
                y = norm(f"{at}.bn1", conv(f"{at}.conv1", x)).relu()
                y = conv(f"{at}.conv2", y, stride=s, padding=d, dilation=d, groups=sizes.groups)
                y = conv(f"{at}.conv3", norm(f"{at}.bn2", y).relu())
                y = norm(f"{at}.bn3", y)
            else:
                y = norm(f"{at}.bn1", conv(f"{at}.conv1", x, stride=s, padding=1)).relu()
                y = norm(f"{at}.bn2", conv(f"{at}.conv2", y, padding=1))
            if f"{at}.downsample.0.weight" in w:
                x = norm(f"{at}.downsample.1", conv(f"{at}.downsample.0", x, stride=s))
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


def of_vit(w: Mapping[str, Tensor], sizes: ViT, x: Tensor) -> Tensor:
    def affine(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (sizes.features,), w[f"{name}.weight"], w[f"{name}.bias"], sizes.eps)

    batch, p = len(x), sizes.patch
    patches = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(batch, -1, 3 * p * p)
    x = patches @ w["conv_proj.weight"].flatten(1).t() + w["conv_proj.bias"]
    x = torch.cat((w["class_token"].repeat(batch, 1, 1), x), 1) + w["encoder.pos_embedding"]
    for number in range(sizes.blocks):
        at = f"encoder.layers.encoder_layer_{number}"
        h = F.linear(norm(f"{at}.ln_1", x), w[f"{at}.self_attention.in_proj_weight"], w[f"{at}.self_attention.in_proj_bias"])
        q, k, v = (torch.unflatten(part, -1, (sizes.heads, -1)).transpose(1, 2) for part in h.chunk(3, -1))
        scores = (q @ k.mT / (sizes.features / sizes.heads) ** 0.5).softmax(-1)
        x = x + affine(f"{at}.self_attention.out_proj", (scores @ v).transpose(1, 2).flatten(2))
        x = x + affine(f"{at}.mlp.3", F.gelu(affine(f"{at}.mlp.0", norm(f"{at}.ln_2", x))))
    x = norm("encoder.ln", x)[:, 0]
    return affine("heads.head", x if sizes.representation is None else affine("heads.pre_logits", x).tanh())


# --- Files and states --------------------------------------------------------------------------------------------------


@every_kind
def test_what_is_written_is_the_layout_and_is_read_again(sizes: ResNet | ViT, tmp_path: Path) -> None:
    model = drawn(sizes)
    torch_vision.save(tmp_path / "model.safetensors", model, sizes)
    state = load_file(tmp_path / "model.safetensors")
    logits = of_resnet(state, sizes, IMAGES) if isinstance(sizes, ResNet) else of_vit(state, sizes, IMAGES)
    assert_trees_close(apply(model, IMAGES), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    path = tmp_path / "model.safetensors"
    again: Model = torch_vision.load(path, sizes)
    assert tree.equal(again, model)
    assert tree.equal(of(sizes, state), model)


def test_a_state_is_of_copies() -> None:
    sizes = KINDS["vit"]
    model = drawn(sizes)
    before = tree.map(torch.clone, model)
    state = torch_vision.to_state_dict(model, sizes)
    read = of(sizes, state)
    for tensor in state.values():
        tensor.zero_()
    assert tree.equal(model, before)
    assert tree.equal(read, before)


def test_dtypes_devices_dropout_and_keys(tmp_path: Path) -> None:
    sizes = KINDS["vit"]
    assert isinstance(sizes, ViT)
    model = tree.cast_to(drawn(sizes), torch.bfloat16)
    torch_vision.save(tmp_path / "model", model, sizes)
    assert tree.equal(torch_vision.load(tmp_path / "model", sizes), model)
    wide = torch_vision.load(tmp_path / "model", sizes, dtype=torch.float32, device="cpu")
    assert {leaf.dtype for leaf in tree.leaves(wide)} == {torch.float32}
    dropping = initialize(key(0), sizes.model(dropout=0.1, attention_dropout=0.1))
    state = torch_vision.to_state_dict(rekey(dropping, key(0)), sizes)
    assert_trees_close(apply(of(sizes, state), IMAGES), apply(dropping, IMAGES), rtol=1e-6, atol=1e-6)


def test_older_names_of_networks() -> None:
    sizes = KINDS["vit"]
    model = drawn(sizes)
    state = torch_vision.to_state_dict(model, sizes)
    older = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value for name, value in state.items()}
    assert tree.equal(of(sizes, older), model)


def test_what_is_amiss_is_told(tmp_path: Path) -> None:
    sizes = ResNet((1, 1, 1, 1), classes=5)
    fresh = initialize(key(0), sizes.model())
    with pytest.raises(ValueError, match="the model has no statistics, which torchvision's modules need in evaluation"):
        torch_vision.to_state_dict(fresh, sizes)
    state = torch_vision.to_state_dict(calibrate(fresh, [IMAGES]), sizes)
    with pytest.raises(
        ValueError, match=r"(?s)are not those of ResNet\(.*fc.weight is float32\[5, 512\], and must be of shape"
    ):
        torch_vision.from_state_dict(state, ResNet((1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"(?s)layer1.1.conv1.weight is not there"):
        torch_vision.from_state_dict(state, ResNet((2, 1, 1, 1), classes=5))
    save_file({**state, "head.scale": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"(?s)the tensors in .*more.safetensors are not .*head.scale is there, and belongs"):
        torch_vision.load(tmp_path / "more.safetensors", sizes)
    with pytest.raises(ValueError, match=r"the model is not one of ViT\(.*are amiss"):
        torch_vision.to_state_dict(calibrate(fresh, [IMAGES]), KINDS["vit"])
    with pytest.raises(ValueError, match=r"no ResNet is named 'resnet20': known are resnet18, .*; did you mean 'resnet\d+'"):
        ResNet.named("resnet20")
    with pytest.raises(ValueError, match="no ViT is named 'vit_b_8'"):
        ViT.named("vit_b_8")
    with pytest.raises(ValueError, match="image must be a multiple of patch, but image=30 and patch=8"):
        ViT(image=30, patch=8, features=8, hidden=8, blocks=1, heads=1)
    with pytest.raises(ValueError, match="groups, width_per_group and dilated are of bottlenecks"):
        ResNet((1, 1, 1, 1), groups=2)
    with pytest.raises(ValueError, match=r"ToSequence\(\(4, 4\)\) takes an input of shape \(B, C, 4, 4\), not \(3, 16, 2, 8\)"):
        apply(drawn(KINDS["vit"]), IMAGES.reshape(3, 3, 16, 64))


# --- torchvision -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """torchvision, whose own kernels need a torch of the same build; its models need none of them."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is an extra, and not installed here")
    try:
        return import_module("torchvision")
    except RuntimeError:  # it is of another build: it asks for two operators by name, and its models run neither
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return import_module("torchvision")


def theirs(torchvision: ModuleType, sizes: ResNet | ViT) -> nn.Module:
    """torchvision's module of the same sizes."""
    if isinstance(sizes, ResNet):
        of_torchvision = torchvision.models.resnet
        kind = of_torchvision.Bottleneck if sizes.is_bottleneck else of_torchvision.BasicBlock
        make: Callable[..., nn.Module] = partial(of_torchvision.ResNet, kind, list(sizes.blocks))  # type: ignore[explicit-any]  # it is untyped
        made: nn.Module = make(
            num_classes=sizes.classes,
            groups=sizes.groups,
            width_per_group=sizes.width_per_group,
            replace_stride_with_dilation=list(sizes.dilated),
        )
        return made
    module: nn.Module = torchvision.models.VisionTransformer(
        sizes.image,
        sizes.patch,
        sizes.blocks,
        sizes.heads,
        sizes.features,
        sizes.hidden,
        num_classes=sizes.classes,
        representation_size=sizes.representation,
    )
    return module


@every_kind
def test_logits_are_those_of_torchvision(sizes: ResNet | ViT, torchvision: ModuleType) -> None:
    module, model = theirs(torchvision, sizes), drawn(sizes)
    state = torch_vision.to_state_dict(model, sizes)
    assert {*state} == {*module.state_dict()}
    module.load_state_dict(state)
    with torch.no_grad():
        logits = module.eval()(IMAGES)
    assert_trees_close(apply(model, IMAGES), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    assert tree.equal(of(sizes, module.state_dict()), model)


@every_kind
def test_training_is_that_of_torchvision(sizes: ResNet | ViT, torchvision: ModuleType) -> None:
    """The gradients of a batch, and the statistics behind it."""
    module, model = theirs(torchvision, sizes).double(), tree.cast_to(drawn(sizes), torch.float64)
    module.load_state_dict(torch_vision.to_state_dict(model, sizes))
    x, target = IMAGES.double(), torch.tensor([0, 2, 1])
    loss = F.cross_entropy(module.train()(x), target)
    torch.autograd.backward(loss)
    training = without_statistics(model)
    value, grads = value_and_grad(cross_entropy, training, x, target)
    assert_trees_close(value, loss.detach(), rtol=1e-9, atol=1e-9)
    found = torch_vision.to_state_dict(with_statistics(grads), sizes)
    expected = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {*expected} <= {*found}
    for name, grad in expected.items():
        assert_trees_close(found[name], grad, rtol=1e-6, atol=1e-8 * max(1.0, float(grad.abs().max())))
    tracked = track(model, forward(training, x)[1], momentum=0.1)
    after = torch_vision.to_state_dict(tracked, sizes)
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert_trees_close(after[name], buffer, rtol=1e-9, atol=1e-9)


NAMED: Final = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"),
    *("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
)


@pytest.mark.parametrize("name", NAMED)
def test_names_are_those_of_torchvision(name: str, torchvision: ModuleType) -> None:
    """On the meta device: no memory."""
    sizes = ViT.named(name) if name.startswith("vit") else ResNet.named(name)
    with torch.device("meta"):
        module: nn.Module = torchvision.models.get_model(name)
    like: Model = with_statistics(sizes.model())
    leaves = {path: leaf for path, leaf in zip(tree.paths(like), tree.flatten(like)[0], strict=True) if leaf is not None}
    shapes = {piece.name: piece.shape(leaves[path]) for path, pieces in sizes.names().items() for piece in pieces}
    assert {*leaves} == {*sizes.names()}
    wanted = {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    assert shapes == wanted
