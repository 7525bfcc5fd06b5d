"""Losses: from a prediction and its target to the loss' value and its gradient with respect to the prediction.

Both are found together, by formulas derived by hand. A configured loss is a `functools.partial` of one of these:
``partial(huber, delta=0.1)``. None of them broadcasts, and none records a tape.

All of them take `reduction`, which says what becomes of the losses of a batch of B samples, the first axis:

- ``"mean"`` is the mean of all elements; for classification, of all samples and positions, weighted by their class' weight.
- ``"sum"`` is the sum of all.
- ``"batch_mean"`` is the sum of all, divided by B: each sample's outputs are summed, and the samples averaged. For
  distributions, that is the mean divergence.

What other libraries call ``reduction="none"`` is `unreduced`, of any loss: the losses one by one. Weights and masks by element
are given with the target, to `weighted`, of any loss: means are over what they leave, exactly.

A float16 or bfloat16 prediction is compared in float32: its gradient has its dtype, the value is float32.
"""
