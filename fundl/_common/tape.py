"""What would be silently wrong where fundl records no tape: derivatives of its functions by torch's reverse mode."""

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import is_in_forward_mode, no_grad

_functorch = torch._C._functorch


def refuse_tape(*values: object) -> None:
    """Raise if ``torch.func.grad`` and its like differentiate with respect to some of the values: they would find zeros.

    Whoever computes from values without a tape asks first. Where nothing is differentiated, that takes 0.1 us.
    """
    if _functorch.maybe_current_level() is not None and any(map(_is_taped, tree.leaves(values))):
        raise RuntimeError(
            "torch.func.grad, vjp, jacrev and their like find zeros as derivatives of fundl's functions, which record no tape:"
            " take fundl.vjp(model, x, grad) or fundl.value_and_grad(loss, model, x, target) in their place. torch.func.jvp,"
            " jacfwd and vmap work over all of them"
        )


def off_tape(x: Tensor) -> Tensor:
    """A tensor that is on no tape; the caller has turned grad mode off."""
    if not x.requires_grad:
        return x
    return x.clone() if is_in_forward_mode() else x.detach()  # which would leave a tangent behind


def constant(x: Tensor) -> Tensor:
    """What a loss is given, off any tape; forward mode goes through."""
    if not x.requires_grad:
        return x
    refuse_tape(x)
    with no_grad():
        return off_tape(x)


def refuse_input(x: Tensor) -> None:
    """Raise for an input that is on a tape of torch.autograd, which would stop there."""
    if x.grad_fn is not None:
        raise RuntimeError(
            f"the input is on a tape of torch.autograd ({x.grad_fn.name()}), which would find a gradient of zero, since fundl"
            " records none: take grads, grad_x = fundl.vjp(model, x.detach(), grad), and hand it on by x.backward(grad_x); or,"
            " where no gradient is wanted, give x.detach()"
        )


def _is_taped(leaf: Tensor) -> bool:
    """Whether reverse mode follows a tensor, which forward mode or vmap may have wrapped once more."""
    while _functorch.is_functorch_wrapped_tensor(leaf):
        if leaf.requires_grad:
            return True
        leaf = _functorch.get_unwrapped(leaf)
    return False
