"""Models of images in the layouts of torchvision: their weights by name, with the same logits.

    from fundl.interop import torch_vision

    model = torch_vision.load("resnet50.safetensors", torch_vision.ResNet.named("resnet50"))

| torchvision.models | what it becomes |
| --- | --- |
| resnet18 to resnet152, resnext50_32x4d to resnext101_64x4d, wide_resnet50_2, wide_resnet101_2 | `ResNet` |
| vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14 | `ViT` |

Nothing of torchvision is needed: files are numbers and names.
"""

from fundl.interop.torch_vision.files import from_state_dict, load, save, to_state_dict
from fundl.interop.torch_vision.resnet import ResNet, ResNetModel
from fundl.interop.torch_vision.vit import ViT, ViTModel

__all__ = ["ResNet", "ResNetModel", "ViT", "ViTModel", "from_state_dict", "load", "save", "to_state_dict"]
