"""Batches hold each row once, in an order that the key alone decides; parts, statistics and the disk are what they say."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import override

from fundl import data, random, tree
from fundl.data import count_rows, disk, generator, mean_and_std, minibatches, one_hot, standardize, train_test_split
from fundl.random import key

# --- minibatches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 12, 50])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_permuted_rows_in_pieces(rows: int, batch_size: int, drop_last: bool) -> None:
    x = torch.arange(3 * rows).reshape(rows, 3)
    if drop_last and rows < batch_size:
        with pytest.raises(ValueError, match=f"batch size is {batch_size}, but the data has only {rows} rows"):
            minibatches(key(0), x, batch_size, drop_last=True)
        return
    batches = minibatches(key(0), x, batch_size, drop_last=drop_last)
    used = rows - rows % batch_size if drop_last else rows
    assert torch.equal(torch.cat(list(batches)), x[random.permutation(key(0), rows)][:used])
    assert len(batches) == len(list(batches)) == math.ceil(used / batch_size)
    assert all(len(batch) == batch_size for batch in list(batches)[:-1])


def test_batches_go_to_a_device_by_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(10.0)
    pinned: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", keep)
    on_meta = minibatches(key(0), (x, x), 4, device="meta")
    assert [(batch[0].device.type, len(batch[1])) for batch in on_meta] == [("meta", 4), ("meta", 4), ("meta", 2)]
    assert torch.equal(torch.cat(list(minibatches(key(0), x, 4, device="cpu"))), torch.cat(list(minibatches(key(0), x, 4))))
    assert not pinned
    if torch.cuda.is_available():
        assert all(batch.is_cuda for batch in minibatches(key(0), x, 4, device="cuda"))
    else:
        with pytest.raises((RuntimeError, AssertionError)):  # as torch says it
            list(minibatches(key(0), x, 4, device="cuda"))
    assert torch.equal(pinned[0], x[random.permutation(key(0), 10)])


def test_rows_of_all_tensors_stay_together() -> None:
    ids = torch.arange(10)
    labels = {"doubled": 2 * ids}
    for x, inner, nothing in minibatches(key(0), (ids.float().reshape(10, 1), labels, None), 3):
        assert torch.equal(2 * x.flatten(), inner["doubled"].float())
        assert nothing is None


def test_the_key_decides_the_order() -> None:
    x = torch.arange(100)
    first, again, other = (torch.cat(list(minibatches(key(seed), x, 10))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, x)


def test_without_a_key_batches_are_views_in_order() -> None:
    x = torch.arange(7)
    batches = list(minibatches(None, x, 3))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches[0].data_ptr() == x.data_ptr()


def test_the_last_batch_is_ragged_or_dropped() -> None:
    x = torch.arange(7)
    assert [len(batch) for batch in minibatches(key(0), x, 3)] == [3, 3, 1]
    assert [len(batch) for batch in minibatches(key(0), x, 3, drop_last=True)] == [3, 3]
    assert [len(batch) for batch in minibatches(None, x, 3, drop_last=True)] == [3, 3]
    assert [len(batch) for batch in minibatches(key(0), x, 100)] == [7]


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1000])
def test_how_much_is_gathered_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    x = torch.arange(50)
    whole = list(minibatches(key(0), (x, x + 1), 4))
    monkeypatch.setattr(data, "_CHUNK_BYTES", chunk_bytes)
    assert tree.equal(list(minibatches(key(0), (x, x + 1), 4)), whole)


def test_batches_can_be_gone_through_again_and_leave_the_data_as_it_is() -> None:
    x = torch.arange(6.0)
    before = x.clone()
    batches = minibatches(key(0), (x,), 4)
    assert tree.equal(list(batches), list(batches))
    assert torch.equal(x, before)
    assert repr(batches) == "Minibatches(data=(float32[6],), order=int64[6], rows=6, batch_size=4)"


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_must_be_positive(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"the batch size must be at least 1, not {batch_size}"):
        minibatches(key(0), torch.zeros(3), batch_size)


def test_minibatches_refuse_what_is_no_data() -> None:
    with pytest.raises(ValueError, match=r"same number of rows \(first axis\), but data\[0\] has 3, data\[1\] has 4"):
        minibatches(key(0), (torch.zeros(3, 2), torch.zeros(4)), 2)
    with pytest.raises(ValueError, match=r"the data is empty: \(float32\[0, 2\], float32\[0\]\) has 0 rows"):
        minibatches(key(0), (torch.zeros(0, 2), torch.zeros(0)), 2)
    with pytest.raises(ValueError, match=r"data\['x'\] is a single number"):
        minibatches(key(0), {"x": torch.tensor(1.0)}, 2)
    with pytest.raises(ValueError, match="the data holds no tensor: None"):
        minibatches(key(0), None, 2)


def test_minibatches_refuse_what_is_no_key() -> None:
    with pytest.raises(ValueError, match="one key is needed, but here are 2"):
        minibatches(random.split(key(0)), torch.zeros(3), 2)
    with pytest.raises(TypeError, match="a key is an int64 tensor"):
        minibatches(torch.zeros(2), torch.zeros(3), 2)


def test_count_rows_passes_over_none() -> None:
    assert count_rows((None, torch.zeros(3, 2))) == 3


# --- DataLoader -------------------------------------------------------------------------------------------------------


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """A data set that makes its examples when they are asked for."""

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(float(index)), torch.tensor(float(index) ** 2)

    def __len__(self) -> int:
        return 10


def order_of(seed: int) -> list[list[float]]:
    loader = DataLoader(Squares(), batch_size=4, shuffle=True, generator=generator(key(seed)))
    return [x.tolist() for x, _ in loader]


def test_a_key_decides_the_order_of_a_data_loader() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert order_of(0) == order_of(0) != order_of(1)
    assert sorted(number for batch in order_of(0) for number in batch) == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)  # no global state was drawn from


def test_a_data_loader_gives_the_batches_that_minibatches_gives() -> None:
    x = torch.arange(5.0)
    loaded = [part for (part,) in DataLoader(TensorDataset(x), batch_size=2)]
    assert tree.equal(loaded, list(minibatches(None, x, 2)))


def test_generator_needs_a_key() -> None:
    with pytest.raises(ValueError, match="one key is needed"):
        generator(random.split(key(0)))


# --- train_test_split -------------------------------------------------------------------------------------------------


def test_the_two_parts_share_no_row_and_miss_none() -> None:
    x = torch.arange(10)
    (train, train_doubled), (test, _) = train_test_split(key(0), (x, 2 * x), test_count=3)
    assert len(train) == 7
    assert len(test) == 3
    assert sorted(torch.cat((train, test)).tolist()) == x.tolist()
    assert torch.equal(train_doubled, 2 * train)


def test_a_fraction_is_rounded_to_rows_and_the_key_decides() -> None:
    x = torch.arange(10)
    first = train_test_split(key(0), x, test_fraction=0.26)
    assert len(first[1]) == 3
    assert tree.equal(first, train_test_split(key(0), x, test_count=3))
    assert not tree.equal(first, train_test_split(key(1), x, test_count=3))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 20.0, math.nan])
def test_a_fraction_is_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"test_fraction must be between 0 and 1, not {fraction}"):
        train_test_split(key(0), torch.arange(10), test_fraction=fraction)


@pytest.mark.parametrize("count", [0, 10, 11, -1])
def test_no_part_may_be_empty(count: int) -> None:
    with pytest.raises(ValueError, match=f"of 10 rows, {count} to test on leaves {10 - count} to train on"):
        train_test_split(key(0), torch.arange(10), test_count=count)


def test_a_fraction_that_rounds_to_no_row() -> None:
    with pytest.raises(ValueError, match="of 10 rows, 0 to test on"):
        train_test_split(key(0), torch.arange(10), test_fraction=0.01)


def test_give_a_fraction_or_a_count() -> None:
    with pytest.raises(TypeError, match="give either test_fraction"):
        train_test_split(key(0), torch.arange(10))  # type: ignore[call-overload]  # what the test is about
    with pytest.raises(TypeError, match="give either test_fraction"):
        train_test_split(key(0), torch.arange(10), test_fraction=0.5, test_count=5)  # type: ignore[call-overload]  # likewise


# --- Values -----------------------------------------------------------------------------------------------------------


def test_standardized_features_have_mean_0_and_std_1() -> None:
    x = random.normal(key(0), (500, 3), mean=5.0, std=3.0, dtype=torch.float64)
    result = standardize(x, *mean_and_std(x))
    torch.testing.assert_close(result.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(result.std(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_statistics_of_channels() -> None:
    images = random.uniform(key(0), (4, 3, 5, 5))
    mean, std = mean_and_std(images, axes=(0, 2, 3))
    assert mean.shape == std.shape == (1, 3, 1, 1)
    torch.testing.assert_close(mean[0, 1, 0, 0], images[:, 1].mean())


def test_a_feature_that_never_varies_becomes_0() -> None:
    x = torch.tensor([[3.0], [3.0]])
    assert torch.equal(standardize(x, *mean_and_std(x)), torch.zeros(2, 1))


def test_statistics_need_floating_point_and_something() -> None:
    with pytest.raises(TypeError, match=r"convert them with x\.to\(torch\.float32\)"):
        mean_and_std(torch.arange(3))
    with pytest.raises(ValueError, match="no mean of nothing"):
        mean_and_std(torch.zeros(0, 2))


def test_one_hot_agrees_with_torch() -> None:
    labels = random.randint(key(0), (4, 5), low=0, high=3)
    expected = torch.nn.functional.one_hot(labels, 3)
    assert torch.equal(one_hot(labels, 3, dtype=torch.float64), expected.double())
    assert one_hot(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)


def test_one_hot_errors() -> None:
    with pytest.raises(ValueError, match="labels of 3 classes go from 0 to 2, but here they go from 0 to 3"):
        one_hot(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="but here they go from -1 to 1"):
        one_hot(torch.tensor([-1, 1]), 3)
    with pytest.raises(TypeError, match=r"labels are integers, not torch\.float32"):
        one_hot(torch.zeros(2), 3)


# --- The disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_labels_say_which_points_are_in_the_disk(dtype: torch.dtype) -> None:
    points, labels = disk(key(3), 500, dtype=dtype)
    assert points.dtype == dtype
    assert labels.dtype == torch.int64
    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
        assert label == (math.hypot(x - 0.5, y - 0.5) < 1 / math.sqrt(2 * math.pi))


def test_the_classes_are_balanced_and_the_points_uniform() -> None:
    count = 100_000
    points, labels = disk(key(0), count)
    assert points.min() >= 0
    assert points.max() < 1
    assert abs(float(labels.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(count)  # four standard deviations
    quadrants = torch.bincount((points[:, 0] > 0.5) + 2 * (points[:, 1] > 0.5).long())
    assert (quadrants / count - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / count)


def test_the_disk_is_a_function_of_the_key() -> None:
    assert tree.equal(disk(key(0), 10), disk(key(0), 10))
    assert not tree.equal(disk(key(0), 10), disk(key(1), 10))


def test_disk_errors() -> None:
    with pytest.raises(ValueError, match="at least 1 point, not 0"):
        disk(key(0), 0)
    with pytest.raises(TypeError, match=r"not in torch\.int64"):
        disk(key(0), 3, dtype=torch.int64)
