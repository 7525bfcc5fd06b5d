"""Mistakes in training, checkpoints, histories and ensembles."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    ("train_state(key(0), model)", TypeError, "train_state lacks optimizer: it takes key, model, optimizer"),
    ("train_state(model, optimizer)", TypeError, "train_state lacks optimizer: it takes key, model, optimizer"),
    (
        "train_state(model, key(0), optimizer)",
        TypeError,
        "a key is made by key(seed), split or fold_in; (Linear(weight=float32[8, 2], bias=float32[8]),",
    ),
    ("train_state(key(0), optimizer, model)", TypeError, "the model is of type _SGD, not a layer or a tuple of layers:"),
    (
        "train_state(key(0), None, optimizer)",
        TypeError,
        "the model is of type NoneType, not a layer or a tuple of layers: None",
    ),
    (
        "train_state(key(0), [model], optimizer)",
        TypeError,
        "the model is of type list, not a layer or a tuple of layers: write compose(*layers)",
    ),
    (
        "train_state(keys, model, optimizer)",
        ValueError,
        "one key is needed, but here are 2, as from split: iterate over them or pick one",
    ),
    ('train_state(key(0), model, "sgd")', TypeError, "an optimizer is what adam(0.001), say, makes, not 'sgd'"),
    ("train_step(mse)", TypeError, "train_step lacks optimizer: it takes loss, optimizer, donate"),
    (
        'train_step("mse", optimizer)',
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as",
    ),
    (
        "train_step(None, optimizer)",
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as",
    ),
    ("train_step(mse, None)", TypeError, "an optimizer is what adam(0.001), say, makes, not None"),
    (
        "train_step(mse(x, x), optimizer)",
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as",
    ),
    (
        "step((x, target), state)",
        TypeError,
        "a batch is a pair (x, target), not TrainState(model=(Linear(weight=float32[8, 2], bias=float32[8]),",
    ),
    ("step(state, x)", TypeError, "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are"),
    (
        "step(state, (x,))",
        TypeError,
        "a batch is a pair (x, target), not (float32[4, 2],); the batches of a data set in memory are",
    ),
    (
        "step(state, (x, target, x))",
        TypeError,
        "a batch is a pair (x, target), not (float32[4, 2], float32[4, 1], float32[4, 2]); the batches of a",
    ),
    (
        "step(state, None)",
        TypeError,
        "a batch is a pair (x, target), not None; the batches of a data set in memory are minibatches(key,",
    ),
    (
        "step(state, (torch.ones(4, 3), target))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (4, 3): its last axis must be of size 2",
    ),
    (
        "step(state, (x, torch.zeros(4)))",
        ValueError,
        "the prediction's shape is (4, 1), the target's (4,): they must be equal; give the target an axis",
    ),
    (
        "step(state, (x.double(), target))",
        TypeError,
        "Linear's weight is torch.float32, but the input is torch.float64: convert one of them, the input",
    ),
    (
        "step(state, (target, x))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (4, 1): its last axis must be of size 2",
    ),
    (
        "train_step(mse, adam(0.1))(state, (x, target))",
        ValueError,
        "the state is of another transform or of other params: it and init(params) are not of the same",
    ),
    (
        "train_step(cross_entropy, optimizer)(state, (x, labels))",
        IndexError,
        "a class index is 1, but there are 1 classes: indices go from 0 to 0, and -100 (ignore_index) marks",
    ),
    (
        "step(many, (x, target))",
        ValueError,
        "an ensemble of 2 models takes an input whose first axis is that of the runs, of size 2, but its",
    ),
    (
        "fit(step, state, batches)",
        TypeError,
        "fit lacks epochs: it takes step, state, batches, epochs, every, metrics, evaluate, evaluated,",
    ),
    (
        "fit(step, state, batches, 3)",
        TypeError,
        "fit takes 3 by place (step, state, batches), not 4; by name, epochs, every, metrics, evaluate,",
    ),
    ("fit(step, state, batches, epochs=-1)", ValueError, "the number of epochs must be 0 or more, not -1"),
    ("fit(step, state, batches, epochs=1.5, progress=False)", TypeError, "the number of epochs must be an int, not 1.5"),
    ('fit(step, state, batches, epochs="3", progress=False)', TypeError, "the number of epochs must be an int, not '3'"),
    ("fit(step, state, batches, epochs=None, progress=False)", TypeError, "the number of epochs must be an int, not None"),
    ("fit(step, state, batches, epochs=True, progress=False)", TypeError, "the number of epochs must be an int, not True"),
    (
        "fit(mse, state, batches, epochs=1, progress=False)",
        TypeError,
        "the prediction must be a tensor, not TrainState: write torch.tensor(...)",
    ),
    (
        "fit(step, model, batches, epochs=1, progress=False)",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not",
    ),
    (
        "fit(model, state, batches, epochs=1, progress=False)",
        TypeError,
        "a step is what train_step(loss, optimizer) makes, not (Linear(weight=float32[8, 2],",
    ),
    (
        "fit(step, None, batches, epochs=1, progress=False)",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not None",
    ),
    (
        "fit(step, many, batches, epochs=1, progress=False)",
        ValueError,
        "an ensemble of 2 models takes an input whose first axis is that of the runs, of size 2, but its",
    ),
    (
        "fit(step, state, [], epochs=1, progress=False)",
        ValueError,
        "epoch 1 has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an",
    ),
    (
        "fit(step, state, (x, target), epochs=1, progress=False)",
        TypeError,
        "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are",
    ),
    (
        "fit(step, state, [x], epochs=1, progress=False)",
        TypeError,
        "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are",
    ),
    (
        "fit(step, state, None, epochs=1, progress=False)",
        TypeError,
        "batches are pairs (x, target) in a list, a DataLoader, or what a function of the epoch's key",
    ),
    (
        "fit(step, state, 10, epochs=1, progress=False)",
        TypeError,
        "batches are pairs (x, target) in a list, a DataLoader, or what a function of the epoch's key",
    ),
    (
        "fit(step, state, x, epochs=1, progress=False)",
        TypeError,
        "a batch is a pair (x, target), not float32[2]; the batches of a data set in memory are",
    ),
    (
        "fit(step, state, minibatches, epochs=1, progress=False)",
        TypeError,
        "minibatches lacks data and batch_size: it takes key, data, batch_size, drop_last",
    ),
    (
        "fit(step, state, lambda k: None, epochs=1, progress=False)",
        TypeError,
        "batches are pairs (x, target) in a list, a DataLoader, or what a function of the epoch's key",
    ),
    (
        "fit(step, state, lambda k: (x, target), epochs=1, progress=False)",
        TypeError,
        "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are",
    ),
    (
        "fit(step, state, iter(batches), epochs=2, progress=False)",
        ValueError,
        "epoch 2 has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an",
    ),
    (
        "fit(step, state, (b for b in batches), epochs=2, progress=False)",
        ValueError,
        "epoch 2 has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an",
    ),
    (
        'fit(step, state, {"x": x}, epochs=1, progress=False)',
        TypeError,
        "a batch is a pair (x, target), not 'x'; the batches of a data set in memory are minibatches(key,",
    ),
    (
        'fit(step, state, "batches", epochs=1, progress=False)',
        TypeError,
        "a batch is a pair (x, target), not 'b'; the batches of a data set in memory are minibatches(key,",
    ),
    (
        "fit(step, state, batches, epochs=1, every=0, progress=False)",
        ValueError,
        "every, the steps of an epoch, must be 1 or more, not 0",
    ),
    (
        "fit(step, state, batches, epochs=1, every=1.5, progress=False)",
        TypeError,
        "every, the steps of an epoch, must be an int, not 1.5",
    ),
    (
        'fit(step, state, batches, epochs=1, every="1", progress=False)',
        TypeError,
        "every, the steps of an epoch, must be an int, not '1'",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"loss": accuracy}, progress=False)',
        ValueError,
        'no metric can be called "loss": the loss itself is there besides',
    ),
    (
        "fit(step, state, batches, epochs=1, metrics={1: accuracy}, progress=False)",
        TypeError,
        'the name of a metric is a word, such as "accuracy", not 1',
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"a": "accuracy"}, progress=False)',
        TypeError,
        "metrics are functions by names of your own, metrics={\"accuracy\": accuracy}, not {'a': 'accuracy'}",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"accuracy": accuracy}, progress=False)',
        ValueError,
        "the prediction's shape (4, 1) has one score for each sample, not one for each class: say above",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"mse": mse}, progress=False)',
        TypeError,
        "a metric returns a single number, a real tensor without axes, but 'mse' returned (float32[],",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"a": lambda p, t: "good"}, progress=False)',
        TypeError,
        "a metric returns a single number, a real tensor without axes, but 'a' returned 'good': of a float",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"a": lambda p, t: p}, progress=False)',
        TypeError,
        "a metric returns a single number, a real tensor without axes, but 'a' returned float32[4, 1]: of a",
    ),
    (
        'fit(step, state, batches, epochs=1, metrics={"a": lambda p, t: None}, progress=False)',
        TypeError,
        "a metric returns a single number, a real tensor without axes, but 'a' returned None: of a float",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=evaluate, progress=False)",
        TypeError,
        "evaluate lacks model and batches: it takes loss, model, batches, metrics",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=evaluate, evaluated=0.5, progress=False)",
        TypeError,
        "evaluated is a function from the state to the model that is evaluated, such as averaged, not 0.5",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=lambda m: Evaluation(1.0), evaluated=averaged, progress=False)",
        ValueError,
        "has no average: one of chain(ema(0.999), optimizer) has",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=0.5, progress=False)",
        TypeError,
        "evaluate is a function of a model, such as lambda model: fundl.evaluate(loss, model, batches), not",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=lambda m: 0.5, progress=False)",
        TypeError,
        "evaluate, given to fit, returns an Evaluation, as fundl.evaluate(loss, model, batches) does, not",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate=lambda m: None, progress=False)",
        TypeError,
        "evaluate, given to fit, returns an Evaluation, as fundl.evaluate(loss, model, batches) does, not",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate_every=0, progress=False)",
        ValueError,
        "evaluate_every must be 1 epoch or more, not 0",
    ),
    (
        "fit(step, state, batches, epochs=1, evaluate_every=1.5, progress=False)",
        TypeError,
        "evaluate_every must be an int, not 1.5",
    ),
    (
        'fit(step, state, batches, epochs=1, evaluate_every="1", progress=False)',
        TypeError,
        "evaluate_every must be an int, not '1'",
    ),
    (
        "fit(step, state, batches, epochs=1, checkpoints=True, progress=False)",
        TypeError,
        "checkpoints are Checkpoints(folder), which says what is kept there, not True",
    ),
    (
        "fit(step, state, batches, epochs=1, checkpoints=Checkpoints, progress=False)",
        TypeError,
        "checkpoints are Checkpoints(folder), which says what is kept there, not <class",
    ),
    (
        'fit(step, state, batches, epochs=1, compile="yes", progress=False)',
        ValueError,
        "compile is \"auto\", True or False, not 'yes'",
    ),
    (
        "fit(step, state, batches, epochs=1, compile=None, progress=False)",
        ValueError,
        'compile is "auto", True or False, not None',
    ),
    ("fit(step, state, batches, epochs=1, compile=1, progress=False)", ValueError, 'compile is "auto", True or False, not 1'),
    (
        'fit(step, state, batches, epochs=1, progress="bar")',
        TypeError,
        "progress is True, False or a Console of rich, not 'bar'",
    ),
    ("fit(step, state, batches, epochs=1, progress=None)", TypeError, "progress is True, False or a Console of rich, not None"),
    (
        "fit(step, state, batches, epochs=1, callbacks=[], progress=False)",
        TypeError,
        "fit has no callbacks: it takes step, state, batches, epochs, every, metrics, evaluate,",
    ),
    ("fit(step, state, batches, n_epochs=1)", TypeError, "fit has no n_epochs: write fit(..., ..., ..., epochs=1)"),
    (
        "fit(step, state, batches, epochs=1, verbose=True)",
        TypeError,
        "fit has no verbose: write fit(..., ..., ..., epochs=1, progress=True)",
    ),
    (
        "fit(step, state, [(x, target * nan)], epochs=1, progress=False)",
        FloatingPointError,
        "the loss is nan in epoch 1, at step 1: the training diverges. Try a smaller learning rate, clip the",
    ),
    (
        "epochs(step, state, batches)",
        TypeError,
        "epochs lacks count: it takes step, state, batches, count, every, metrics, evaluate, evaluated,",
    ),
    (
        "epochs(step, state, batches, 3)",
        TypeError,
        "epochs takes 3 by place (step, state, batches), not 4; by name, count, every, metrics, evaluate,",
    ),
    ("epochs(step, state, batches, epochs=3)", TypeError, "epochs has no epochs: write epochs(..., ..., ..., count=3)"),
    ("epochs(step, state, batches, count=-1)", ValueError, "the number of epochs must be 0 or more, not -1"),
    ("run(epochs(step, state, batches, count=1.0, progress=False))", TypeError, "the number of epochs must be an int, not 1.0"),
    ('epochs(step, state, batches, count="3")', TypeError, "the number of epochs must be an int, not '3'"),
    ("run(epochs(step, state, batches, count=inf, progress=False))", TypeError, "the number of epochs must be an int, not inf"),
    ("epochs(step, state, batches, count=None)", TypeError, "the number of epochs must be an int, not None"),
    ("epochs(step, state, batches, count=1, every=-1)", ValueError, "every, the steps of an epoch, must be 1 or more, not -1"),
    ("epochs(step, state, batches, count=1, evaluate_every=-1)", ValueError, "evaluate_every must be 1 epoch or more, not -1"),
    (
        'epochs(step, state, batches, count=1, checkpoints="runs")',
        TypeError,
        "checkpoints are Checkpoints(folder), which says what is kept there, not 'runs'",
    ),
    (
        'epochs(step, state, batches, count=1, metrics="accuracy")',
        TypeError,
        "metrics are functions by names of your own, metrics={\"accuracy\": accuracy}, not 'accuracy'",
    ),
    (
        "run(epochs(step, model, batches, count=1, progress=False))",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not",
    ),
    (
        "run(epochs(step, state, [x], count=1, progress=False))",
        TypeError,
        "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are",
    ),
    (
        "run(epochs(step, state, iter(batches), count=2, progress=False))",
        ValueError,
        "epoch 2 has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an",
    ),
    ("Checkpoints(folder, 0)", ValueError, "Checkpoints(..., every=) must be above 0, not 0"),
    ("Checkpoints(folder, every=0)", ValueError, "Checkpoints(..., every=) must be above 0, not 0"),
    ("Checkpoints(folder, every=-1)", ValueError, "Checkpoints(..., every=) must be above 0, not -1"),
    ("Checkpoints(folder, every=1.5)", TypeError, "Checkpoints(..., every=) must be an int, not 1.5"),
    ('Checkpoints(folder, every="1")', TypeError, "Checkpoints(..., every=) must be an int, not '1'"),
    ("Checkpoints(folder, every=None)", TypeError, "Checkpoints(..., every=) must be an int, not None"),
    ("Checkpoints(folder, every=True)", TypeError, "Checkpoints(..., every=) must be an int, not True"),
    ("Checkpoints(folder, seconds=0)", ValueError, "Checkpoints(..., seconds=) must be above 0, not 0"),
    ('Checkpoints(folder, seconds="60")', TypeError, "Checkpoints(..., seconds=) must be a number, not '60'"),
    ("Checkpoints(folder, seconds=nan)", ValueError, "Checkpoints(..., seconds=) must be above 0, not nan"),
    ("Checkpoints(folder, keep=0)", ValueError, "Checkpoints(..., keep=) must be above 0, not 0"),
)
