import torch

from fundl import Dropout, Linear, linear

layer = linear(2, 3)
layer.weight = torch.ones(3, 2)  # E: Property "weight" defined in "Linear" is read-only
layer.bias = None  # E: Property "bias" defined in "Linear" is read-only
Dropout(0.1).rate = 0.2  # E: Property "rate" defined in "Dropout" is read-only
layer(torch.ones(1, 2))  # E: "Linear[Literal[2], Literal[3]]" not callable
layer.parameters()  # E: "Linear[Literal[2], Literal[3]]" has no attribute "parameters"
Linear(weight=torch.ones(3, 2))  # E: Missing positional argument "bias" in call to "Linear"


class Mine(Linear):  # E: Cannot inherit from final class "Linear"
    pass
