"""Metrics: how good predictions are, in numbers that people read.

Unlike a loss, a metric has no gradient: it compares decisions. Where there is a score for each class, the highest decides;
a single score decides for yes where it is above a threshold.
"""
