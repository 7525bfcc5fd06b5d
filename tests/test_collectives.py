"""Groups of processes, and what they make together."""

import pytest
import torch
import torch.distributed
from torch import Tensor

from fundl import distributed, key, random, tree
from fundl.distributed import Group, all_gather, all_max, all_sum, broadcast, grid, group_of, require_same, scatter_sum, start
from tests.fake_cuda import DEVICE, watched
from tests.processes import together

ALONE = Group("alone", 1, 0)
AWAY = Group("away", 2, 0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)


def values(rank: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    """A tree of tensors of many kinds, other ones in each process."""
    numbers = random.randint(random.fold_in(key(0), rank), (6, 5), low=-8, high=9).to(dtype)
    return {
        "matrix": numbers,
        "transposed": numbers.t()[:, :4],
        "expanded": numbers[:1, :1].expand(2, 3),
        "one": numbers[0, 0],
        "nothing": None,
        "empty": numbers[:0],
        "steps": numbers[::2, 1::2],
        "word": torch.tensor(rank + 7),
    }


def sums(group: Group, bucket_bytes: int) -> list[dict[str, Tensor | None]]:
    return [all_sum(values(group.rank, dtype), group, bucket_bytes=bucket_bytes) for dtype in DTYPES]


@pytest.mark.parametrize("bucket_bytes", [0, 100, 25 * 2**20])
def test_sums(bucket_bytes: int) -> None:
    for count in (2, 4):
        results = together(count, sums, bucket_bytes)
        for place, dtype in enumerate(DTYPES):
            expected = values(0, dtype)
            for rank in range(1, count):
                expected = tree.map(torch.add, expected, values(rank, dtype))
            for of_rank in results:
                assert tree.equal(of_rank[place], expected)


def of_all_kinds(group: Group) -> dict[str, object]:
    rows = {"a": torch.arange(8.0).reshape(4, 2) + 10 * group.rank, "b": (torch.arange(4) * (group.rank + 1), None)}
    return {
        "gather": all_gather(rows, group),
        "scatter": scatter_sum(rows, group),
        "max": all_max(rows, group),
        "broadcast": broadcast(rows, group, source=1),
        "small buckets": all_gather(rows, group, bucket_bytes=1),
    }


def test_what_two_make_together() -> None:
    first, second = together(2, of_all_kinds)
    a, b = torch.arange(8.0).reshape(4, 2), torch.arange(4)
    for of_rank in first, second:
        assert tree.equal(of_rank["gather"], {"a": torch.cat((a, a + 10)), "b": (torch.cat((b, 2 * b)), None)})
        assert tree.equal(of_rank["small buckets"], of_rank["gather"])
        assert tree.equal(of_rank["max"], {"a": a + 10, "b": (2 * b, None)})
        assert tree.equal(of_rank["broadcast"], {"a": a + 10, "b": (2 * b, None)})
    assert tree.equal(first["scatter"], {"a": 2 * a[:2] + 10, "b": (3 * b[:2], None)})
    assert tree.equal(second["scatter"], {"a": 2 * a[2:] + 10, "b": (3 * b[2:], None)})


def in_a_grid(_group: Group) -> list[object]:
    data, tensor = grid(data=2, tensor=2)
    again = grid(data=2, tensor=2)
    one, all_of_them = grid(one=1, all=4)
    rank = torch.tensor([torch.distributed.get_rank()])
    members = [all_gather(rank, group).tolist() for group in (data, tensor, one, all_of_them)]
    return [data, tensor, members, again == (data, tensor)]


def test_a_grid() -> None:
    results = together(4, in_a_grid)
    for rank, (data, tensor, members, same) in enumerate(results):
        row, column = divmod(rank, 2)
        assert members == [[column, column + 2], [2 * row, 2 * row + 1], [rank], [0, 1, 2, 3]]
        assert same
        assert (data, tensor) == (results[0][0], results[0][1])  # of all processes: only their ranks differ
        assert isinstance(data, Group)
        assert isinstance(tensor, Group)
        assert (data.rank, tensor.rank) == (row, column)


def compared(group: Group) -> list[str]:
    shared = {"a": torch.ones(3), "b": (torch.zeros(2), None)}
    require_same(shared, group)
    cases = {
        "values": {"a": torch.ones(3), "b": (torch.full((2,), float(group.rank)), None)},
        "sign of zero": {"a": torch.ones(3), "b": (torch.tensor([0.0, -0.0 if group.rank else 0.0]), None)},
        "shapes": {"a": torch.ones(3 + group.rank)},
        "structures": [torch.ones(1)] * (1 + group.rank),
    }
    told = []
    for case in cases.values():
        try:
            require_same(case, group, "the model")
        except ValueError as error:
            told.append(str(error))
    return told


def test_what_differs_is_told() -> None:
    first, second = together(2, compared)
    assert len(first) == len(second) == 4
    assert first[0] == second[0]
    assert first[0].startswith("the model['b'][0] is not the same in all processes")
    assert first[1].startswith("the model['b'][0] is not the same")
    assert "of another structure" in first[2]
    assert "of another structure" in first[3]


def misused(group: Group) -> list[str]:
    told = []
    for call in (
        lambda: grid(data=3),
        lambda: scatter_sum(torch.ones(3), group),
        lambda: all_gather(torch.ones(()), group),
        lambda: all_sum(torch.ones(2), group, bucket_bytes=-1),
        lambda: broadcast(torch.ones(2), group, source=2),
        lambda: all_sum(torch.ones(2), Group("another", 2, group.rank)),
        lambda: group_of(torch.distributed.new_group([0, 1]), "fundl"),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            call()
        told.append(str(caught.value))
    return told


def test_misuse_is_told() -> None:
    (told, _) = together(2, misused)
    for message, part in zip(
        told,
        (
            "grid(data=3) is of 3 processes, but there are 2",
            "divides rows equally among 2 processes",
            "a tensor without axes",
            "bucket_bytes is an int, 0 for no buckets or more",
            "go from 0 to 1",
            "no group 'another' of 2 processes is up in this process: call start() first",
            "another group is called 'fundl'",
        ),
        strict=True,
    ):
        assert part in message


def own_group(group: Group) -> list[object]:
    made = group_of(torch.distributed.new_group([0, 1]), "mine")
    return [made, all_sum(torch.tensor(group.rank + 1), made).item(), made.process_group is not None]


def test_a_process_group_of_torchs() -> None:
    assert together(2, own_group) == [[Group("mine", 2, rank), 3, True] for rank in range(2)]


def test_one_process_needs_no_launcher() -> None:
    group, device = start(device="cpu")
    given = {"a": torch.ones(2), "b": None}
    assert group.size == 1
    assert device == torch.device("cpu")
    assert group.process_group is None
    for function in all_sum, all_gather, all_max, scatter_sum, broadcast:
        assert function(given, group) is given
    require_same(given, group)


def test_cuda_is_the_own_gpu_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(start(device=device)[1]) for device in (None, "cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
    assert [device.index for device in chosen] == [3, 3, 1]
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="this is process 4 of its machine, counted from 0, which has 4 GPUs"):
        start(device="cuda")


def on_gpus(group: Group) -> list[str]:
    found = []
    with watched():
        x = torch.empty(4, 3, device=DEVICE)
        for function in all_gather, scatter_sum, lambda x, group: group.of_all(x):
            with pytest.raises(RuntimeError) as caught:
                function(x, group)
            found.append(str(caught.value))
    return found


def test_gloo_brings_no_rows_of_gpus_together() -> None:
    for found in together(2, on_gpus):
        assert len({*found}) == 1
        assert "by gloo, which gathers and scatters no rows that are on a GPU: give each process a GPU of its own" in found[0]


def test_a_group_that_is_not_up() -> None:
    with pytest.raises(RuntimeError, match=r"no group 'away' of 2 processes is up .* call start\(\) first"):
        all_sum(torch.ones(2), AWAY)
    with pytest.raises(RuntimeError, match="no group 'away'"):
        print(AWAY.process_group)


def test_what_is_no_group() -> None:
    with pytest.raises(TypeError, match=r"a group is what start\(\) of fundl.distributed gives first, not 2"):
        all_sum(torch.ones(2), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="go from 0 to 1, but this one's is 2"):
        Group("g", 2, 2)
    with pytest.raises(TypeError, match="grid takes the size of each axis by a name"):
        grid(data=0)


def test_groups_are_values() -> None:
    assert Group("g", 2, 0) == Group("g", 2, 1)
    assert hash(Group("g", 2, 0)) == hash(Group("g", 2, 1))
    assert Group("g", 2, 0) != Group("h", 2, 0)
    assert distributed.Group is Group
