from typing import reveal_type

import torch

from fundl import ReLU, adam, apply_updates, chain, clip_by_global_norm, compose, linear, mse, sgd, value_and_grad

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
