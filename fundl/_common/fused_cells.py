"""The cells of LSTM and GRU on CUDA: what a step does behind its products, as one kernel in the place of five to eight.

A compiler makes as few kernels of the formulas, and is given these.
"""

from torch import Tensor

from fundl._common.modes import is_in_forward_mode, is_untraced


def cells_run(*tensors: Tensor) -> bool:
    """Whether the kernels take what belongs to a sweep: numbers of one dtype on one GPU, neither traced, mapped nor dual."""
    first = tensors[0]
    if not first.is_cuda or is_in_forward_mode():
        return False
    return all(is_untraced(x) and x.dtype == first.dtype and x.device == first.device and x.numel() > 0 for x in tensors)
