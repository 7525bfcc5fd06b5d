"""Mistakes in running models backward, and in what is made of whole models."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    (
        "backward(model, forward(model, x)[1], torch.ones(4, 2))",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward(model, forward(model, x)[1], target.double())",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward(model, forward(model, x)[1], torch.ones(3, 1))",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward(model, (), target)",
        TypeError,
        "the residuals of a tuple of 3 layers are a tuple of as many, as forward returned it, not ()",
    ),
    (
        "backward(model, forward(model, x)[1][:2], target)",
        TypeError,
        "the residuals of a tuple of 3 layers are a tuple of as many, as forward returned it, not",
    ),
    (
        "backward(model, (None, None, None), target)",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward_params(model, forward(model, x)[1], torch.ones(4, 3))",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward_input(model, forward(model, x)[1], torch.ones(4, 3))",
        ValueError,
        "Linear cannot be run backward with this grad and these residuals: grad must be of the shape and",
    ),
    (
        "backward(Tanh(), forward(Tanh(), x)[1], torch.ones(4, 3))",
        ValueError,
        "Tanh cannot be run backward with this grad and these residuals: grad must be of the shape and dtype",
    ),
    (
        "backward(ReLU(), forward(ReLU(), x)[1], None)",
        ValueError,
        "ReLU cannot be run backward with this grad and these residuals: grad must be of the shape and dtype",
    ),
    (
        "backward(made(conv2d(3, 8, 3)), images, torch.ones(2, 8, 4, 4))",
        ValueError,
        "grad is the gradient with respect to the output, and must have its shape (2, 8, 6, 6), not (2, 8,",
    ),
    (
        "backward(made(lstm(4, 8)), forward(made(lstm(4, 8)), sequence)[1], torch.ones(2, 5, 4))",
        ValueError,
        "grad is the gradient with respect to the output, and must have its shape (2, 5, 8), not (2, 5, 4)",
    ),
    (
        'value_and_grad("mse", model, x, target)',
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as",
    ),
    (
        "value_and_grad(3, model, x, target)",
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as",
    ),
    ("rekey(model, 0)", TypeError, "a key is made by key(seed), split or fold_in, and is not 0"),
    ("rekey(model, None)", TypeError, "a key is made by key(seed), split or fold_in, and is not None"),
    ("with_mask(3, None)", TypeError, "the model is of type int, not a layer or a tuple of layers: 3"),
    ('with_statistics("model")', TypeError, "the model is of type str, not a layer or a tuple of layers: 'model'"),
    (
        "without_statistics(x)",
        TypeError,
        "the model is of type Tensor, not a layer or a tuple of layers: float32[4, 2]; the model is the",
    ),
    (
        "calibrate(x, [x])",
        TypeError,
        "the model is of type Tensor, not a layer or a tuple of layers: float32[4, 2]; the model is the",
    ),
    ("calibrate(made(batch_norm(2)), 3)", TypeError, "batches must be a list, or what else one can go through, not 3"),
    ("track(3, x)", TypeError, "the model is of type int, not a layer or a tuple of layers: 3"),
    ('check_vjp(linear(2, 3), x, tolerance="1e-6")', TypeError, "tolerance must be a number, not '1e-6'"),
    ("check_vjp(model, x, directions=2.5)", TypeError, "directions must be an int, not 2.5"),
)
