"""PyTorch's own samples as oracles: what has a counterpart agrees, or is listed with the reason."""
