"""Sample layers: images as sequences."""

from typing import Final

import torch

from fundl import ClassToken, FirstPosition, ToSequence, class_token
from tests.samples.table import normal, sample

SAMPLES: Final = (
    sample("ToSequence", ToSequence(), normal(5, 2, 3, 4), lambda _, x: x.flatten(2).permute(0, 2, 1)),
    sample("ToSequence of signals", ToSequence(), normal(5, 2, 3), lambda _, x: x.permute(0, 2, 1)),
    sample(
        "ClassToken",
        class_token(4),
        normal(5, 3, 4),
        lambda p, x: torch.cat((p.weight.repeat(len(x), 1, 1), x), 1),
    ),
    sample("ClassToken alone", ClassToken(normal(4)), normal(5, 0, 4), lambda p, x: p.weight.repeat(len(x), 1, 1)),
    sample("FirstPosition", FirstPosition(), normal(5, 4, 3), lambda _, x: x[:, 0]),
)
