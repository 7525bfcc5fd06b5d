"""What the stages of a pipeline say to each other."""

from typing import Final, TypeAlias, cast

import torch
from torch import Tensor

from fundl import tree
from fundl.collectives import Sending, receive, send
from fundl.distributed.staging import codes_of, layers_before, like
from fundl.groups import Group, device_of
from fundl.layer import Model
from fundl.model import apply

_FORWARD: Final = 1
_BACK: Final = 2
"""The tags of what goes to the next stage, and to the one before."""

Told: TypeAlias = tuple[dict[object, object], dict[object, object]]
"""Of which inputs a stage has told the next one what comes, and what it has been told itself."""


class Links:
    """A stage's links to the next one, and to the one before.

    Args:
        model: that is in stages.
        through: their processes.
        told: what was said of shapes and dtypes, which is said once.
    """

    def __init__(self, model: Model, through: Group, told: Told) -> None:
        self._model, self._through = model, through
        self._shapes, self._expected = told
        self._sent: list[Sending] = []
        self.is_first, self.is_last = through.rank == 0, through.rank == through.size - 1

    def input(self, x: object) -> object:
        """What the own layers are given, where x goes into the model."""
        return x if self.is_first else self._received(self._input_like(x), _FORWARD)

    def give(self, x: object, y: object) -> None:
        """Send the next stage what the own layers gave, for such an x."""
        if (kinds := _kinds(x)) not in self._shapes:  # what comes is told once, by both
            self._shapes[kinds] = None
            self._send(codes_of(tree.leaves(y), device_of(self._through)), _FORWARD)
        self._send(y, _FORWARD)

    def give_back(self, grad: object) -> None:
        """Send the stage before the gradient with respect to what it gave."""
        self._send(grad, _BACK)

    def given_back(self, like: object) -> object:
        """The gradient with respect to what the own layers gave, which looks like it."""
        return self._received(like, _BACK)

    def finish(self) -> None:
        """Return once all has left that was sent."""
        for sent in self._sent:
            sent.wait()

    def _send(self, values: object, tag: int) -> None:
        self._sent = [sent for sent in self._sent if not sent.is_done]
        self._sent.append(send(values, self._through, to=self._through.rank + (1 if tag == _FORWARD else -1), tag=tag))

    def _received(self, like: object, tag: int) -> object:
        return receive(like, self._through, source=self._through.rank + (-1 if tag == _FORWARD else 1), tag=tag).wait()

    def _input_like(self, x: object) -> object:
        """What comes from the stage before: what the layers before this one make of such an x."""
        kinds = _kinds(x)
        if kinds not in self._expected:
            before = layers_before(self._model)
            assert before is not None  # this is not the first
            found: object = apply(before, cast("Tensor", tree.map(lambda leaf: leaf.to("meta"), x)))
            leaves, structure = tree.flatten(found)
            given = [leaf for leaf in leaves if leaf is not None]
            codes = self._received(codes_of(given, torch.device("meta")), _FORWARD)
            assert isinstance(codes, Tensor)  # as it was sent
            there = iter([like(*both, "meta") for both in zip(given, codes.tolist(), strict=True)])
            self._expected[kinds] = tree.unflatten(structure, [None if leaf is None else next(there) for leaf in leaves])
        return self._expected[kinds]


def _kinds(x: object) -> object:
    return tuple([(tuple(leaf.shape), leaf.dtype) for leaf in tree.leaves(x)])
