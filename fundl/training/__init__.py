"""Training: a state, a step that makes the next state of it, and a run, which is a fold of the step over batches.

All of it is pure. A state determines everything that follows from it: the order of the batches, what dropout drops, the
parameters to the last bit. So a run can stop after any epoch and be taken up again, in another process too, and nothing
is different from a run that never stopped. That is why `fit` takes no callbacks: what is to be done between epochs are the
statements of a loop.

    for epoch in epochs(step, state, batches, count=100, metrics={"accuracy": accuracy}, checkpoints=Checkpoints("run")):
        write_csv("run.csv", epoch.history)
        if epoch.train.metrics["accuracy"] > 0.97:
            break
    model = epoch.state.model
"""
