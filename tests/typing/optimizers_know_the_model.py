from typing import reveal_type

import torch

from fundl import (
    ReLU,
    adam,
    apply_updates,
    chain,
    clip_by_global_norm,
    compose,
    ensemble,
    jit,
    key,
    linear,
    mse,
    scan,
    sgd,
    split,
    train_state,
    train_step,
    value_and_grad,
)

x, y = torch.ones(4, 2), torch.ones(4, 3)
model = compose(linear(2, 3), ReLU())
other = compose(linear(2, 3), linear(3, 3))
_, grads = value_and_grad(mse, model, x, y)
_, other_grads = value_and_grad(mse, other, x, y)

optimizer = adam(1e-3)
state = optimizer.init(model)
updates, state = optimizer.update(grads, state, model)
reveal_type(apply_updates(model, updates))  # R: tuple[fundl.layers.linear.Linear[Literal[2], Literal[3]], fundl.layers.activation.ReLU]
model, state = optimizer.step(grads, state, model)

optimizer.update(other_grads, state, model)  # E: Cannot infer value of type parameter "P" of "update"
optimizer.step(other_grads, state, model)  # E: Cannot infer value of type parameter "P" of "step"
optimizer.update(grads, optimizer.init(other), model)  # E: Cannot infer value of type parameter "P"
sgd(0.1).update(grads, state, model)  # E: Argument 2 to "update" of "Transform" has incompatible type
chain(clip_by_global_norm(1.0), sgd(0.1)).init(model)
adam("fast")  # E: Argument 1 to "adam" has incompatible type "str"

batch = x, y

state_of_run = train_state(key(0), model, optimizer)
after, report = jit(train_step(mse, optimizer), donate="state")(state_of_run, batch)
reveal_type(after.model)  # R: tuple[fundl.layers.linear.Linear[Literal[2], Literal[3]], fundl.layers.activation.ReLU]
jit(train_step(mse, optimizer))(state_of_run, (x, "labels"))  # E: Argument 2 to "__call__" of "Compiled" has incompatible type
after, reports_of_steps = scan(train_step(mse, optimizer))(state_of_run, batch)
runs = ensemble.train_state(split(key(0), 3), ensemble.initialize(split(key(1), 3), model), optimizer)
after_all, report_of_all = jit(ensemble.train_step(mse, optimizer))(runs, batch)
reveal_type(after_all.model.models[1])  # R: fundl.layers.activation.ReLU
