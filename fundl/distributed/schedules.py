"""In which order the stages of a pipeline work: lists of tasks, made by pure functions, and what their order costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, final

import attrs
from typing_extensions import override

What: TypeAlias = Literal["forward", "backward", "input", "params"]


class Task(NamedTuple):
    """What a stage does next.

    Args:
        what: "forward"; "backward", as a whole; or its halves, "input", the gradient with respect to the input, which the stage
            before waits for, and "params", that with respect to the parameters, for which nobody waits.
        micro_batch: of which micro-batch, counted from 0.
    """

    what: What
    micro_batch: int


Schedule: TypeAlias = Callable[[int, int, int], list[Task]]
"""The tasks of a stage, in order, from its number, the number of stages, and that of micro-batches.

Each micro-batch goes forward, and then backward, as a whole or by halves; all stages take them in the same order.
"""


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Task]:
    """1F1B: once the pipeline is full, a stage goes forward with one micro-batch and back with another, in turns.

    So stage i of p has the residuals of at most p - i micro-batches at a time, whatever their number m; of the time, the share
    (p - 1) / (m + p - 1) is spent waiting.

    Source:
        Narayanan, Phanishayee, Shi, Chen and Zaharia, Memory-efficient pipeline-parallel DNN training, 2021.

    >>> from fundl.distributed import one_forward_one_backward
    >>> [f"{task.what} {task.micro_batch}" for task in one_forward_one_backward(0, 2, 3)]
    ['forward 0', 'forward 1', 'backward 0', 'forward 2', 'backward 1', 'backward 2']
    """
    return [Task("backward" if is_back else "forward", place) for is_back, place in _turns(stage, stages, micro_batches)]


def zero_bubble(stage: int, stages: int, micro_batches: int) -> list[Task]:
    """ZB-H1: backward by halves. Gradients with respect to inputs come first; those of parameters fill the time of waiting.

    Stage i begins with the latter i micro-batches later, so that none has the residuals of more than p at a time, as with
    `one_forward_one_backward`. Where forward and each half take as long, the share (p - 1) / (3 m + p - 1) of the time is spent
    waiting.

    Source:
        Qi, Wan, Huang and Lin, Zero bubble pipeline parallelism, 2023.

    >>> from fundl.distributed import zero_bubble
    >>> [f"{task.what} {task.micro_batch}" for task in zero_bubble(1, 2, 2)]
    ['forward 0', 'input 0', 'forward 1', 'input 1', 'params 0', 'params 1']
    """
    tasks: list[Task] = []
    for is_back, place in _turns(stage, stages, micro_batches):
        tasks.append(Task("input" if is_back else "forward", place))
        if is_back and place >= stage:
            tasks.append(Task("params", place - stage))
    return [*tasks, *(Task("params", place) for place in range(max(micro_batches - stage, 0), micro_batches))]


def _turns(stage: int, stages: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """In which order a stage takes micro-batches forward, and back: whether it is back, and which one."""
    if not 0 <= stage < stages or micro_batches < 0:
        raise ValueError(
            f"a schedule is of a stage from 0 to {stages - 1} and of 0 micro-batches or more, not of stage {stage} and"
            f" {micro_batches}"
        )
    ahead = min(stages - 1 - stage, micro_batches)
    yield from ((False, place) for place in range(ahead))
    for place in range(micro_batches):
        if ahead + place < micro_batches:
            yield False, ahead + place
        yield True, place


COSTS: Final[Mapping[What, float]] = {"forward": 1.0, "backward": 2.0, "input": 1.0, "params": 1.0}


@final
@attrs.frozen
class Timeline:
    """When each stage does what; made by `simulate`. It prints as a chart, with a line for each stage.

    Args:
        tasks: of each stage.
        begins: when each of them begins.
        ends: when it ends.
        bubble: the share of the time that the stages spend waiting, from the first task to the last.
    """

    tasks: tuple[tuple[Task, ...], ...]
    begins: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    bubble: float

    @override
    def __str__(self) -> str:
        """A chart in which F is forward, B backward, I and P its halves, each as wide as it is long."""
        letters = {"forward": "F", "backward": "B", "input": "I", "params": "P"}
        lines: list[str] = []
        for tasks, begins, ends in zip(self.tasks, self.begins, self.ends, strict=True):
            line = ""
            for task, begin, end in zip(tasks, begins, ends, strict=True):
                line = line.ljust(round(3 * begin)) + f"{letters[task.what]}{task.micro_batch}".ljust(round(3 * (end - begin)))
            lines.append(line.rstrip())
        return "\n".join(lines)


def simulate(schedule: Schedule, stages: int, micro_batches: int, costs: Mapping[What, float] = COSTS) -> Timeline:
    """When each stage of a pipeline does what, if nothing but its tasks takes time.

    Args:
        schedule: gives the tasks of each stage.
        stages: how many there are.
        micro_batches: how many there are.
        costs: how long each kind of task takes; by default forward 1, backward 2, each of its halves 1.

    Raises:
        ValueError: the stages would wait for each other for ever, or a task is missing; the message says which.

    >>> from fundl.distributed import one_forward_one_backward, simulate
    >>> print(simulate(one_forward_one_backward, 2, 3))
    F0 F1       B0    F2 B1       B2
       F0 B0    F1 B1    F2 B2
    """
    tasks = tuple([tuple(schedule(stage, stages, micro_batches)) for stage in range(stages)])
    for stage, own in enumerate(tasks):
        _require_whole(stage, own, micro_batches)
    begins: list[list[float]] = [[] for _ in tasks]
    ended: list[dict[tuple[str, int], float]] = [{} for _ in tasks]
    moved = True
    while moved:
        moved = False
        for stage, own in enumerate(tasks):
            while len(begins[stage]) < len(own):
                task = own[len(begins[stage])]
                before = _needed(task, stage, ended)
                if before is None:
                    break
                begin = max([before, *ended[stage].values()], default=0.0)
                begins[stage].append(begin)
                kind = "back" if task.what in {"backward", "input"} else task.what
                ended[stage][kind, task.micro_batch] = begin + costs[task.what]
                moved = True
    stuck = [(stage, own[len(begins[stage])]) for stage, own in enumerate(tasks) if len(begins[stage]) < len(own)]
    if stuck:
        raise ValueError(
            "the stages of this schedule would wait for each other for ever: "
            + ", ".join(f"stage {stage} for {task.what} {task.micro_batch}" for stage, task in stuck)
        )
    ends = tuple([tuple(own.values()) for own in ended])
    whole = max((end for own in ends for end in own), default=0.0)
    busy = sum(costs[task.what] for own in tasks for task in own)
    return Timeline(tasks, tuple(map(tuple, begins)), ends, 1 - busy / (stages * whole) if whole else 0.0)


def _needed(task: Task, stage: int, ended: Sequence[Mapping[tuple[str, int], float]]) -> float | None:
    """When what a task needs of other tasks is there; None if it is not yet."""
    place = task.micro_batch
    needed: list[float | None] = []
    if task.what == "params":
        needed.append(ended[stage].get(("back", place)))
    elif task.what == "forward":
        if stage:
            needed.append(ended[stage - 1].get(("forward", place)))
    else:
        needed.append(ended[stage].get(("forward", place)))
        if stage + 1 < len(ended):
            needed.append(ended[stage + 1].get(("back", place)))
    found = [one for one in needed if one is not None]
    return max(found, default=0.0) if len(found) == len(needed) else None


def _require_whole(stage: int, tasks: Sequence[Task], micro_batches: int) -> None:
    """Raise unless a stage takes all micro-batches forward and back, in order."""
    order = [*range(micro_batches)]
    forward = [task.micro_batch for task in tasks if task.what == "forward"]
    back = [task.micro_batch for task in tasks if task.what in {"backward", "input"}]
    halves = [task.micro_batch for task in tasks if task.what == "input"]
    params = [task.micro_batch for task in tasks if task.what == "params"]
    if forward != order or back != order or params != halves:
        listed = ", ".join(f"{what} {place}" for what, place in tasks)
        raise ValueError(
            f"each of {micro_batches} micro-batches goes forward and then back, in order, as a whole or by both halves; but the"
            f" tasks of stage {stage} are {listed}"
        )
