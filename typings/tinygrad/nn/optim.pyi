# What the benchmarks use of tinygrad.nn.optim.

from tinygrad import Tensor

class Optimizer:
    def zero_grad(self) -> None: ...
    def schedule_step(self) -> list[Tensor]: ...

def SGD(params: list[Tensor], lr: float) -> Optimizer: ...  # noqa: N802
def Adam(params: list[Tensor], lr: float) -> Optimizer: ...  # noqa: N802
