"""Mistakes in losses and metrics."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    (
        "cross_entropy(scores, labels, weight=torch.tensor([-1.0, 2.0]))",
        ValueError,
        "weight must hold finite numbers of 0 or more, but goes from -1 to 2",
    ),
    (
        "nll(scores, labels, weight=torch.tensor([1.0, nan]))",
        ValueError,
        "weight must hold finite numbers of 0 or more, but goes from nan to nan",
    ),
    (
        "cross_entropy(scores, labels, weight=[1.0, 2.0])",
        TypeError,
        "weight, of the classes, must be a tensor, not list: write torch.tensor(...)",
    ),
    (
        "binary_cross_entropy_with_logits(x, x, pos_weight=-2.0)",
        ValueError,
        "pos_weight must be a finite number of 0 or more, not -2.0",
    ),
    (
        "binary_cross_entropy_with_logits(x, x, pos_weight=torch.tensor([1.0, inf]))",
        ValueError,
        "pos_weight must hold finite numbers of 0 or more, but goes from 1 to inf",
    ),
    ('binary_cross_entropy_with_logits(x, x, pos_weight="2")', TypeError, "pos_weight must be a number, not '2'"),
    ("mse(x, None)", TypeError, "the target must be a tensor, not NoneType: write torch.tensor(...)"),
    ("mse(1.0, 2.0)", TypeError, "the prediction must be a tensor, not float: write torch.tensor(...)"),
    (
        "mse(x, torch.zeros(4, 2, dtype=torch.int64))",
        TypeError,
        "the prediction is torch.float32, the target torch.int64: they must be equal; convert the target",
    ),
    (
        "mse(x, torch.zeros(4, 2, dtype=torch.float64))",
        TypeError,
        "the prediction is torch.float32, the target torch.float64: they must be equal; convert the target",
    ),
    (
        "mse(x.long(), x.long())",
        TypeError,
        "the prediction must be floating-point, not torch.int64: a loss takes the model's outputs, not the",
    ),
    (
        "mse(x, torch.zeros(2, 4))",
        ValueError,
        "the prediction's shape is (4, 2), the target's (2, 4): they must be equal; give the target its",
    ),
    (
        "mse(torch.ones(0, 2), torch.ones(0, 2))",
        ValueError,
        "there is nothing to average: the batch is empty (its shape is (0, 2)); leave it out, or take",
    ),
    ('mse(x, x, reduction="none")', ValueError, 'reduction must be "mean", "sum" or "batch_mean", not \'none\''),
    ('mse(x, x, reduction="avg")', ValueError, 'reduction must be "mean", "sum" or "batch_mean", not \'avg\''),
    ("mse(x, x, reduction=None)", ValueError, 'reduction must be "mean", "sum" or "batch_mean", not None'),
    ('mae(x, "x")', TypeError, "the target must be a tensor, not str: write torch.tensor(...)"),
    ("huber(x, x, delta=0)", ValueError, "delta, where Huber's parabola becomes a line, must be above 0, not 0"),
    ("huber(x, x, delta=-1.0)", ValueError, "delta, where Huber's parabola becomes a line, must be above 0, not -1.0"),
    ("huber(x, x, delta=nan)", ValueError, "delta, where Huber's parabola becomes a line, must be above 0, not nan"),
    (
        "cross_entropy(labels, scores)",
        ValueError,
        "the prediction's shape must be (batch, classes, ...), not (4,): for one sample, take",
    ),
    (
        "cross_entropy(scores, labels.to(torch.float32))",
        ValueError,
        "a torch.float32 target holds the classes' probabilities, and must have the prediction's shape (4,",
    ),
    (
        "cross_entropy(scores, labels + 5)",
        IndexError,
        "a class index is 5, but there are 2 classes: indices go from 0 to 1, and -100 (ignore_index) marks",
    ),
    (
        "cross_entropy(scores, torch.full((4,), -1))",
        IndexError,
        "a class index is -1, but there are 2 classes: indices go from 0 to 1, and -100 (ignore_index) marks",
    ),
    (
        "cross_entropy(scores, labels.unsqueeze(1))",
        ValueError,
        "for a prediction of shape (4, 2), class indices must have the shape (4,), not (4, 1): take",
    ),
    (
        "cross_entropy(scores, torch.zeros(3, dtype=torch.int64))",
        ValueError,
        "for a prediction of shape (4, 2), class indices must have the shape (4,), not (3,): the batch's",
    ),
    (
        "cross_entropy(scores, labels > 0)",
        TypeError,
        "class indices must be integers, not torch.bool: convert them with target.to(torch.int64)",
    ),
    ("cross_entropy(scores, labels.tolist())", TypeError, "the target must be a tensor, not list: write torch.tensor(...)"),
    (
        "cross_entropy(scores, labels, weight=torch.ones(3))",
        ValueError,
        "weight must be of shape (2,), one for each class, not (3,)",
    ),
    (
        "cross_entropy(scores, labels, label_smoothing=1.5)",
        ValueError,
        "label_smoothing, a probability, must be from 0 to 1, not 1.5",
    ),
    (
        "cross_entropy(scores, labels, label_smoothing=nan)",
        ValueError,
        "label_smoothing, a probability, must be from 0 to 1, not nan",
    ),
    (
        "cross_entropy(scores, labels, axis=2)",
        ValueError,
        "axis=2 is to be that of the classes, any but the first, which is the batch's; the prediction's",
    ),
    (
        "cross_entropy(torch.zeros(4, 1), labels)",
        IndexError,
        "a class index is 1, but there is 1 class: indices go from 0 to 0, and -100 (ignore_index) marks",
    ),
    (
        "cross_entropy(torch.zeros(4), labels)",
        ValueError,
        "the prediction's shape must be (batch, classes, ...), not (4,): for one sample, take",
    ),
    (
        "cross_entropy(torch.zeros(4, 0), labels)",
        ValueError,
        "the prediction's shape must be (batch, classes, ...), not (4, 0): for one sample, take",
    ),
    (
        "cross_entropy(scores.long(), labels)",
        TypeError,
        "the prediction must be floating-point, not torch.int64: a loss takes the model's outputs, not the",
    ),
    (
        "nll(scores, labels.float())",
        TypeError,
        "class indices must be integers, not torch.float32: convert them with target.to(torch.int64)",
    ),
    (
        "nll(scores, torch.zeros(4, 3))",
        TypeError,
        "class indices must be integers, not torch.float32: convert them with target.to(torch.int64)",
    ),
    (
        "nll(scores, one_hot(labels, 2))",
        TypeError,
        "class indices must be integers, not torch.float32: convert them with target.to(torch.int64)",
    ),
    (
        "binary_cross_entropy(x + 1, x)",
        ValueError,
        "the prediction must hold probabilities, from 0 to 1, but it goes from 2 to 2; from logits, take",
    ),
    (
        "binary_cross_entropy(-x, x)",
        ValueError,
        "the prediction must hold probabilities, from 0 to 1, but it goes from -1 to -1; from logits, take",
    ),
    ("binary_cross_entropy(x, x + 1)", ValueError, "the target must hold probabilities, from 0 to 1, but it goes from 2 to 2"),
    (
        "binary_cross_entropy(x, labels)",
        ValueError,
        "the prediction's shape is (4, 2), the target's (4,): they must be equal; the loss does not",
    ),
    (
        "binary_cross_entropy(x, torch.zeros(4))",
        ValueError,
        "the prediction's shape is (4, 2), the target's (4,): they must be equal; the loss does not",
    ),
    (
        "binary_cross_entropy_with_logits(x, x * 2)",
        ValueError,
        "the target must hold probabilities, from 0 to 1, but it goes from 2 to 2; of labels -1 and 1, take",
    ),
    (
        "binary_cross_entropy_with_logits(x, labels.unsqueeze(1).expand(4, 2))",
        TypeError,
        "the prediction is torch.float32, the target torch.int64: they must be equal; convert the target",
    ),
    (
        "binary_cross_entropy_with_logits(x, x, pos_weight=torch.ones(3))",
        ValueError,
        "pos_weight is of shape (3,), but must broadcast to one sample's shape (2,): give one number, or one",
    ),
    (
        "kl_divergence(x, labels)",
        ValueError,
        "the prediction's shape is (4, 2), the target's (4,): they must be equal; the loss does not",
    ),
    (
        "accuracy(scores, labels + 7)",
        IndexError,
        "a class index of the target is 7, but there are 2 classes: indices go from 0 to 1",
    ),
    (
        "accuracy(scores, labels.float())",
        TypeError,
        "class indices must be integers, not torch.float32: convert them with target.to(torch.int64)",
    ),
    (
        'accuracy(scores, labels, threshold="0.5")',
        ValueError,
        "with a threshold, the target must have the prediction's shape (4, 2), one label for each score, but",
    ),
    (
        "accuracy(scores, labels, threshold=True)",
        ValueError,
        "with a threshold, the target must have the prediction's shape (4, 2), one label for each score, but",
    ),
    (
        "accuracy(scores, labels, threshold=0.5)",
        ValueError,
        "with a threshold, the target must have the prediction's shape (4, 2), one label for each score, but",
    ),
    (
        "accuracy(scores, labels, axis=3)",
        ValueError,
        "axis=3 is to be that of the classes, any but the first, which is the batch's; the prediction's",
    ),
    (
        "accuracy(torch.zeros(4, 1), labels)",
        ValueError,
        "the prediction's shape (4, 1) has one score for each sample, not one for each class: say above",
    ),
    ("accuracy(labels, labels)", TypeError, "the prediction must hold scores, floating-point, not torch.int64"),
    (
        "accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))",
        ValueError,
        "there is no prediction to judge: the prediction's shape is (0, 2)",
    ),
    (
        "accuracy(x, x * 0.5, threshold=0.5)",
        ValueError,
        "with a threshold, labels must be 0 and 1, or -1 and 1, but one is 0.5",
    ),
    ("confusion_matrix(scores, labels, classes=0)", ValueError, "classes must be at least 1, not 0"),
    (
        "confusion_matrix(scores, labels, classes=3)",
        ValueError,
        "the prediction's shape must be (batch, 3, ...), a score for each of the 3 classes, not (4, 2): if",
    ),
    (
        "confusion_matrix(labels, labels + 1, classes=2)",
        IndexError,
        "a class index of the target is 2, but there are 2 classes: indices go from 0 to 1",
    ),
    (
        "confusion_matrix(labels.tolist(), labels, classes=2)",
        TypeError,
        "the prediction must be a tensor, not list: write torch.tensor(...)",
    ),
    ('accuracy(scores, labels, axis="1")', TypeError, "axis must be an int, not '1'"),
    ('confusion_matrix(scores, labels, classes="2")', TypeError, "classes must be an int, not '2'"),
    ("confusion_matrix(scores, labels, classes=2, axis=None)", TypeError, "axis must be an int, not None"),
    ('cross_entropy(scores, labels, axis="1")', TypeError, "axis must be an int, not '1'"),
    ("cross_entropy(scores, labels, dim=1)", TypeError, "cross_entropy has no dim: write cross_entropy(..., ..., axis=1)"),
    ("cross_entropy(scores, labels, ignore_index=1.5)", TypeError, "ignore_index must be an int, not 1.5"),
    ("cross_entropy(scores, labels, ignore_index=None)", TypeError, "ignore_index must be an int, not None"),
    ('cross_entropy(scores, labels, label_smoothing="0.1")', TypeError, "label_smoothing must be a number, not '0.1'"),
    ("huber(x, x, beta=1.0)", TypeError, "huber has no beta: write huber(..., ..., delta=1.0)"),
    ('huber(x, x, delta="1")', TypeError, "delta must be a number, not '1'"),
    ("huber(x, x, delta=None)", TypeError, "delta must be a number, not None"),
    ('kl_divergence(x, x, log_target="no")', TypeError, "log_target must be True or False, not 'no'"),
    ("kl_divergence(x, x, log_target=1)", TypeError, "log_target must be True or False, not 1"),
    ("mse(x)", TypeError, "mse lacks target: it takes prediction, target, reduction"),
    ("mse(x, x, x)", TypeError, "mse takes 2 by place (prediction, target), not 3; by name, reduction"),
    ("nll(scores, labels, axis=None)", TypeError, "axis must be an int, not None"),
    (
        "nll(scores, labels, weight=1.0)",
        TypeError,
        "weight, of the classes, must be a tensor, not float: write torch.tensor(...)",
    ),
    ('weight_of("mse", x, x)', TypeError, "weight_of(mean, prediction, target) takes a loss or a metric, not 'mse'"),
)
