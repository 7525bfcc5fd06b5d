"""The disk network's training step as a package for the program in C++ beside this, which trains it without Python.

`make cpp` does all of it: it writes the package, compiles train.cpp against the installed torch, runs it, and compares:

    python examples/cpp/export.py write build/cpp      # the package, the first state, the data, and Python's own losses
    build/cpp/train build/cpp 400 > build/cpp/losses   # what the program in C++ makes of them
    python examples/cpp/export.py compare build/cpp    # the largest difference; exit status 1 if it is above the bound
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import fundl
from fundl.interop import aoti

STEPS, ROWS, POINTS = 400, 50, 1000
BOUND = 1e-5  # measured: 4e-7
"""Of the differences between losses, relative to the largest loss, and of those between parameters, of each tensor."""

model = fundl.compose(fundl.linear(2, 25), fundl.ReLU(), fundl.linear(25, 25), fundl.ReLU(), fundl.linear(25, 2))
optimizer = fundl.adam(fundl.cosine_schedule(0.01, STEPS))
step = fundl.train_step(fundl.cross_entropy, optimizer)
state = fundl.train_state(fundl.key(1), fundl.initialize(fundl.key(0), model), optimizer)


def points(seed: int) -> dict[str, Tensor]:
    """Random points, and for each (1, 0) outside of the disk and (0, 1) inside."""
    x, labels = fundl.disk(fundl.key(seed), POINTS)
    return {"points": x, "targets": fundl.one_hot(labels, 2)}


def write(folder: Path) -> None:
    """Write all that the program needs, and train here as well."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"train": points(2), "test": points(3)}
    fundl.save(folder / "data.safetensors", data)
    x, targets = data["train"]["points"], data["train"]["targets"]
    aoti.export_step(folder / "disk.pt2", step, state, (x[:ROWS], targets[:ROWS]))

    after, losses = state, list[Tensor]()
    for number in range(STEPS):
        rows = slice(number * ROWS % POINTS, number * ROWS % POINTS + ROWS)
        after, report = step(after, (x[rows], targets[rows]))
        losses.append(report.loss)
    fundl.save(folder / "expected.safetensors", (torch.stack(losses), after.model))


def compare(folder: Path) -> int:
    """Say how far the program's losses and parameters are from those of Python; 0 if that is within the bound, else 1."""
    losses, expected = fundl.load(folder / "expected.safetensors", (torch.zeros(STEPS), state.model))
    found = torch.tensor([float(line) for line in (folder / "losses").read_text().split()])
    trained = fundl.load(folder / "trained.safetensors", state)
    of_losses = difference(found, losses)
    of_parameters = max(map(difference, fundl.tree.leaves(trained.model), fundl.tree.leaves(expected)))
    print(f"the largest difference to Python: of {STEPS} losses {of_losses:.1e}, of the parameters {of_parameters:.1e}")
    return int(max(of_losses, of_parameters) > BOUND)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, relative to the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "compare":
        sys.exit(compare(place))
    write(place)
