"""The optimizers: transforms of gradients, which compose, and schedules of learning rates."""
