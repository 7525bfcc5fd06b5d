# The part of tinygrad with the optimizers; see optim.pyi.
