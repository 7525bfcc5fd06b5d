"""What stand-ins for tensors get wrong about the results of kernels, put right for as long as the process lives.

Before 2.13, torch takes the log-sum-exp of attention in float64 for one in float32 (pytorch#185539): compiled code then ended
with an error.
"""

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fundl._common import kernels

if TYPE_CHECKING:
    from torch._subclasses import FakeTensorMode

NAMES: Final = ("torch._subclasses.FakeTensorMode", "torch._subclasses.fake_impls.op_implementations_dict")
"""What is private in torch and used here."""


def correct() -> None:
    """Have stand-ins for the results of attention be of their dtypes, unless they are."""
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.fake_impls import op_implementations_dict

    with FakeTensorMode():
        q = torch.empty(1, 1, 1, 1, dtype=torch.float64, device="cpu")
        _, logsumexp = kernels.attention(q, q, q, 0, False, attn_mask=None)
    if logsumexp.dtype is not q.dtype:
        op_implementations_dict[kernels.attention] = _attention


def _attention(
    mode: "FakeTensorMode", _kernel: object, q: Tensor, *_others: object, **_options: object
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    with mode:
        return torch.empty_like(q), q.new_empty(batch, queries, heads, dtype=wide).transpose(1, 2)
