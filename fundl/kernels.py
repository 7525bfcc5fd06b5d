"""The one typed door to ATen's fused kernels.

``torch.ops`` is untyped; each kernel that fundl uses stands here with its true signature, as an overload (a little faster
to call than the packet of all overloads), and nothing else in fundl touches ``torch.ops``. What `torch` itself exports, typed
and documented (``torch.addmm``, ``torch.relu``), is called there.

The annotations are strings, since torch 2.11's OpOverload cannot be subscripted at run time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._ops import OpOverload

_aten: Final = torch.ops.aten

# --- Linear ------------------------------------------------------------------------------------------------------------

# x, weight, bias: x W^T + b over any leading axes.
linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch._C._nn.linear  # 0.7 us quicker than the overload

# --- Activations -------------------------------------------------------------------------------------------------------

# grad, output or input, threshold: grad where the second is above the threshold, else 0.
threshold_backward: "OpOverload[[Tensor, Tensor, float], Tensor]" = _aten.threshold_backward.default
# grad, output: grad (1 - output^2).
tanh_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.tanh_backward.default
