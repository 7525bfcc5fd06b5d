"""Digits as strokes, and their pixels by a formula of their own: what is drawn on the page of digits."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Stroke = Sequence[tuple[float, float]]
"""Points, x to the right and y down, of a sheet that is 1 wide and high."""


def arc(x: float, y: float, wide: float, high: float, *between: float) -> Stroke:
    """A part of an ellipse, from one angle to another: 0 is to the right, 90 below."""
    start, end = between
    angles = [math.radians(start + (end - start) * index / 24) for index in range(25)]
    return [(x + wide * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


DIGITS: Sequence[Sequence[Stroke]] = [
    [arc(0.5, 0.5, 0.22, 0.36, -80, 280)],
    [[(0.55, 0.12), (0.48, 0.88)]],
    [[*arc(0.5, 0.32, 0.2, 0.2, -170, 40), (0.28, 0.85), (0.76, 0.85)]],
    [[*arc(0.48, 0.31, 0.2, 0.19, -150, 90), *arc(0.48, 0.69, 0.22, 0.19, -90, 150)]],
    [[(0.4, 0.12), (0.25, 0.55), (0.78, 0.55)], [(0.62, 0.3), (0.6, 0.9)]],
    [[(0.7, 0.14), (0.38, 0.14), (0.35, 0.45), *arc(0.47, 0.64, 0.22, 0.22, -120, 140)]],
    [[(0.62, 0.1), (0.42, 0.35), *arc(0.5, 0.68, 0.19, 0.2, 180, -180)]],
    [[(0.25, 0.15), (0.75, 0.15), (0.45, 0.9)]],
    [[*arc(0.5, 0.31, 0.17, 0.19, 90, 450), *arc(0.5, 0.69, 0.2, 0.19, -90, 270)]],
    [[*arc(0.5, 0.32, 0.19, 0.2, 0, -360), (0.68, 0.6), (0.6, 0.9)]],
]


def image_of(strokes: Sequence[Stroke]) -> Tensor:
    """The 28 x 28 pixels of strokes: a pen of 2.6 pixels, in a box of 20, with the mass around the middle of pixel 14."""
    lines = [torch.tensor([[a, b] for a, b in itertools.pairwise([one[0], *one])], dtype=torch.float64) for one in strokes]
    ends = torch.cat(lines)  # (n, 2, 2): of each line where it starts and ends, x and y
    low, high = ends.amin((0, 1)), ends.amax((0, 1))
    placed = 14 + (ends - (low + high) / 2) * 17.4 / (high - low).max().clamp(min=0.1)
    ink = ink_of(placed)
    middles = torch.arange(28) + 0.5
    x, y = (ink.sum(axis) @ middles.double() / ink.sum() for axis in (0, 1))
    return ink_of(placed + 14.5 - torch.stack([x, y]))


def ink_of(lines: Tensor) -> Tensor:
    """How much of each pixel is covered, 1 up to 0.8 from a line and 0 from 1.8 on."""
    middles = torch.arange(28, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    start, along = lines[:, 0], lines[:, 1] - lines[:, 0]
    way = torch.stack([x, y], -1).unsqueeze(-2) - start  # (28, 28, n, 2)
    share = ((way * along).sum(-1) / along.square().sum(-1).clamp(min=1e-300)).clamp(0, 1)
    distance = (way - share.unsqueeze(-1) * along).norm(dim=-1).amin(-1)
    return torch.clamp(1.8 - distance, 0, 1)
