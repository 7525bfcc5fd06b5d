"""Metrics against counting by hand, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import accuracy, confusion_matrix

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.5, 0.0, 4.0], [1.0, 0.0, -1.0]])  # decide for 0, 1, 2, 0
TRUE = torch.tensor([0, 1, 2, 2])

quietly = settings(deadline=None, max_examples=80)
labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


# --- Accuracy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [TRUE, TRUE.to(torch.uint8), F.one_hot(TRUE, 3), F.one_hot(TRUE, 3).float(), F.one_hot(TRUE, 3).bool()],
    ids=["indices", "bytes", "one-hot integers", "one-hot numbers", "one-hot booleans"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_accuracy_of_classes(target: Tensor, dtype: torch.dtype) -> None:
    fraction = accuracy(SCORES.to(dtype), target)
    assert fraction.shape == ()
    assert fraction.dtype == torch.float32
    assert fraction.item() == 0.75


def test_accuracy_counts_the_right_decisions() -> None:
    def check(pairs: list[tuple[int, int]]) -> None:
        predicted, true = torch.tensor(pairs).unbind(1)
        expected = sum(one == other for one, other in pairs) / len(pairs)
        assert accuracy(F.one_hot(predicted, 4).float(), true).item() == pytest.approx(expected)

    quietly(given(labels)(check))()


def test_accuracy_of_planes() -> None:
    scores = torch.zeros(2, 3, 2, 2)
    scores[:, 1] = 1.0
    target = torch.tensor([[[1, 1], [1, 0]], [[2, 1], [1, 1]]])
    assert accuracy(scores, target).item() == 0.75
    assert accuracy(scores, F.one_hot(target, 3).permute(0, 3, 1, 2)).item() == 0.75


def test_classes_may_be_along_another_axis() -> None:
    scores = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(20).reshape(4, 5) % 3
    last, one_hot = scores.transpose(1, 2), F.one_hot(target, 3)
    assert accuracy(last, target, axis=-1) == accuracy(scores, target) == accuracy(last, one_hot, axis=-1)
    matrix = confusion_matrix(scores, target, classes=3)
    assert torch.equal(confusion_matrix(last, target, classes=3, axis=-1), matrix)
    assert torch.equal(confusion_matrix(last.argmax(-1), target, classes=3, axis=-1), matrix)
    with pytest.raises(
        ValueError, match="the classes are looked for along axis 1; if they are along the last one, say axis=-1"
    ):
        accuracy(last, target)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2)])
@pytest.mark.parametrize(
    ("scores", "target", "threshold"),
    [
        ([0.9, -0.1, 0.2, -3.0], [1.0, -1.0, -1.0, -1.0], 0.0),
        ([0.9, -0.1, 0.2, -3.0], [1.0, 0.0, 0.0, 0.0], 0.0),
        ([0.9, 0.1, 0.7, 0.3], [1.0, 0.0, 0.0, 0.0], 0.5),
        ([0.9, 0.5, 0.7, 0.3], [1, 0, 0, 0], 0.5),
        ([0.9, 0.1, 0.7, 0.3], [True, False, False, False], 0.5),
        ([3.0, 1.9, 2.1, 0.0], [1, 0, 0, 0], 2.0),
    ],
)
def test_accuracy_of_single_scores(scores: list[float], target: list[float], threshold: float, shape: tuple[int, ...]) -> None:
    fraction = accuracy(torch.tensor(scores).reshape(shape), torch.tensor(target).reshape(shape), threshold=threshold)
    assert fraction.item() == 0.75


def test_accuracy_records_no_tape_and_changes_nothing() -> None:
    scores = SCORES.clone().requires_grad_()
    assert not accuracy(scores, TRUE).requires_grad
    assert not accuracy(scores, F.one_hot(TRUE, 3), threshold=0.0).requires_grad
    assert torch.equal(scores, SCORES)


def test_accuracy_of_meta_tensors_is_a_number() -> None:
    assert accuracy(SCORES.to("meta"), TRUE.to("meta")).shape == ()
    assert accuracy(SCORES[:, 0].to("meta"), TRUE.to("meta"), threshold=0.5).shape == ()


@pytest.mark.slow
def test_accuracy_compiles_into_one_graph() -> None:
    compiled = torch.compile(accuracy, backend="eager", fullgraph=True)
    assert compiled(SCORES, TRUE).item() == 0.75
    assert compiled(SCORES[:, 0], torch.tensor([1, 0, 1, 0]), threshold=0.0).item() == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1), ()])
def test_single_scores_need_a_threshold(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one score for each sample.*threshold=0\.0 for logits or threshold=0\.5"):
        accuracy(torch.zeros(shape), torch.zeros(shape))


def test_accuracy_compares_no_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"class indices of shape \(4,\), or scores of shape \(4, 3\).*its shape is \(4, 1\)"):
        accuracy(SCORES, TRUE.unsqueeze(1))
    with pytest.raises(ValueError, match=r"must have the prediction's shape \(4, 1\).*its shape is \(4,\)"):
        accuracy(SCORES[:, :1], torch.ones(4), threshold=0.0)
    with pytest.raises(ValueError, match=r"no prediction to judge: the prediction's shape is \(0, 3\)"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_accuracy_needs_scores_and_classes() -> None:
    with pytest.raises(TypeError, match=r"prediction must hold scores, floating-point, not torch\.int64"):
        accuracy(TRUE, TRUE)
    with pytest.raises(TypeError, match=r"class indices must be integers, not torch\.float32.*target\.to\(torch\.int64\)"):
        accuracy(SCORES, TRUE.float())
    for wrong in (3, -1):
        with pytest.raises(IndexError, match=rf"class index of the target is {wrong}, but there are 3 classes.*from 0 to 2"):
            accuracy(SCORES, torch.tensor([0, 1, 2, wrong]))


@pytest.mark.parametrize("wrong", [0.3, 2.0, math.nan])
def test_labels_are_certain(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"labels of yes and no must be 0 and 1, or -1 and 1, but one is {wrong:g}"):
        accuracy(torch.zeros(2), torch.tensor([1.0, wrong]), threshold=0.5)


# --- The confusion matrix --------------------------------------------------------------------------------------------


def test_rows_are_true_and_columns_predicted() -> None:
    matrix = confusion_matrix(SCORES, TRUE, classes=3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert torch.equal(confusion_matrix(SCORES, F.one_hot(TRUE, 3).float(), classes=3), matrix)
    assert torch.equal(confusion_matrix(SCORES.argmax(1), TRUE, classes=3), matrix)
    assert torch.equal(confusion_matrix(SCORES.argmax(1), F.one_hot(TRUE, 3), classes=3), matrix)


def test_the_matrix_counts_every_pair() -> None:
    def check(pairs: list[tuple[int, int]]) -> None:
        predicted, true = torch.tensor(pairs).unbind(1)
        expected = [[pairs.count((column, row)) for column in range(4)] for row in range(4)]
        matrix = confusion_matrix(predicted, true, classes=4)
        assert matrix.tolist() == expected
        scores = F.one_hot(predicted, 4).float()
        assert torch.equal(confusion_matrix(scores, true, classes=4), matrix)
        assert matrix.trace().item() / len(pairs) == pytest.approx(accuracy(scores, true).item())

    quietly(given(labels)(check))()


def test_the_matrix_of_planes_and_of_answers() -> None:
    predicted = torch.tensor([[[0, 1]], [[1, 1]]])
    true = torch.tensor([[[0, 0]], [[1, 1]]])
    assert confusion_matrix(predicted, true, classes=2).tolist() == [[1, 1], [0, 2]]
    assert confusion_matrix(F.one_hot(predicted).permute(0, 3, 1, 2).float(), true, classes=2).tolist() == [[1, 1], [0, 2]]
    answers = torch.tensor([0.9, 0.1, 0.7]) > 0.5
    assert confusion_matrix(answers, torch.tensor([True, True, False]), classes=2).tolist() == [[0, 1], [1, 1]]


def test_absent_classes_keep_their_rows() -> None:
    assert confusion_matrix(torch.tensor([0]), torch.tensor([0]), classes=2).tolist() == [[1, 0], [0, 0]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert confusion_matrix(nothing, nothing, classes=2).tolist() == [[0, 0], [0, 0]]


def test_the_matrix_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="classes must be at least 1, not 0"):
        confusion_matrix(TRUE, TRUE, classes=0)
    with pytest.raises(ValueError, match=r"must be \(batch, 4, \.\.\.\), a score for each of the 4 classes, not \(4, 3\)"):
        confusion_matrix(SCORES, TRUE, classes=4)
    with pytest.raises(ValueError, match=r"not \(4,\): if it holds class indices, take prediction\.to\(torch\.int64\)"):
        confusion_matrix(TRUE.float(), TRUE, classes=3)
    with pytest.raises(ValueError, match=r"class indices of shape \(4,\), or scores of shape \(4, 3\).*its shape is \(3,\)"):
        confusion_matrix(TRUE, TRUE[:3], classes=3)
    with pytest.raises(TypeError, match=r"class indices must be integers, not torch\.float32"):
        confusion_matrix(TRUE, TRUE.float(), classes=3)


@pytest.mark.parametrize("wrong", [3, -1])
def test_the_matrix_refuses_classes_out_of_range(wrong: int) -> None:
    strange = torch.tensor([0, 1, 2, wrong])
    with pytest.raises(IndexError, match=rf"class index of the prediction is {wrong}, but there are 3 classes"):
        confusion_matrix(strange, TRUE, classes=3)
    with pytest.raises(IndexError, match=rf"class index of the target is {wrong}, but there are 3 classes"):
        confusion_matrix(TRUE, strange, classes=3)
