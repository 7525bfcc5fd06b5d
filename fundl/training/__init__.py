"""Training: a state, a step that makes the next state of it, and a run, which is a fold of the step over batches.

All of it is pure. A state determines everything that follows from it: the order of the batches, what dropout drops, the
parameters to the last bit. So a run can stop after any epoch and be taken up again, in another process too, and nothing
is different from a run that never stopped. That is why `fit` takes no callbacks: to do something between epochs, fit one
epoch at a time.

    while history[-1].train.metric < 0.97:
        state, more = fit(step, state, batches, epochs=1, metric=accuracy)
        history += more
        save("run.safetensors", state)
"""
