"""Recurrent layers: `sweeps.py` runs over the steps of a sequence, `layers.py` makes layers of it."""
