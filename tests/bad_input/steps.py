"""Mistakes in steps of a user's own, and of ensembles."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    (
        "step(model, (x, target))",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not",
    ),
    (
        "step(None, (x, target))",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not None",
    ),
    (
        "estep(state, (torch.ones(2, 4, 2), torch.zeros(2, 4, 1)))",
        ValueError,
        "this is a step of an ensemble, but the state is that of one model: for one model, take train_step",
    ),
    (
        "fit(lambda s, b: s, state, batches, epochs=1, progress=False)",
        TypeError,
        "a step returns a pair, the next state and a report, not TrainState(model=(Linear(weight=float32[8,",
    ),
    (
        "fit(lambda s, b: None, state, batches, epochs=1, progress=False)",
        TypeError,
        "a step returns a pair, the next state and a report, not None",
    ),
    (
        "fit(lambda s, b: (s, 1), state, batches, epochs=1, progress=False)",
        TypeError,
        "a step returns the next state and a report, Report(loss, prediction), but this report is 1",
    ),
    (
        "fit(lambda s, b: (3, Report(torch.tensor(1.0), x)), state, batches, epochs=1, progress=False)",
        TypeError,
        "a step returns the next state, a TrainState, and a report, but this state is 3",
    ),
    (
        "fit(lambda s, b: (s, b, 1), state, batches, epochs=1, progress=False)",
        TypeError,
        "a step returns a pair, the next state and a report, not (TrainState(model=(Linear(weight=float32[8,",
    ),
    ("fit(step, state, batches, epochs=1, donate=None, progress=False)", TypeError, "donate must be True or False, not None"),
    (
        "ensemble.fit(estep, state, batches, epochs=1, progress=False)",
        ValueError,
        "this is a step of an ensemble, but the state is that of one model: for one model, take train_step",
    ),
    ("ensemble.each(3)", TypeError, "ensemble.each(function) takes a function of one run, not 3"),
    ('ensemble.share(x, "2")', TypeError, "runs must be an int, not '2'"),
    ('last_good("error", state)', TypeError, "last_good(error, state) takes the error that ended a fit, not 'error'"),
    (
        "last_good(ValueError(), None)",
        TypeError,
        "the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not None",
    ),
)
