"""Ensembles: many runs at once, each with its own key, as one batched computation.

In an ensemble of R models, everything has a first axis of R runs: parameters, keys, data, losses. The functions here are
those of one run, for R of them, and what comes out is what R separate runs with the same keys give.

    keys = split(key(0), 50)
    models = ensemble.initialize(keys, model)                                   # an Ensemble[P] of 50 models of type P
    state = ensemble.train_state(keys, models, optimizer)
    step = ensemble.train_step(mse, optimizer)
    state, histories = ensemble.fit(step, state, lambda keys: ensemble.minibatches(keys, data, 50), epochs=100)
    first, *others = ensemble.unstack(state.model)

Integers and draws agree to the bit. Floating-point numbers do so where the kernels are the same: activations, losses,
optimizers. The products of `Linear` are computed for all runs by one batched kernel, which may round the last bit otherwise.
"""



