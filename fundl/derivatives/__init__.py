"""Derivatives beyond those that layers have by themselves.

Backward of a layer or a loss is written by hand. Here is what torch finds in its place, for a function of one's own, and what
is made of the layers' forward and backward: directional, second and per-example derivatives. No other part of the library but
`interop` lets torch differentiate.
"""
