# What the benchmarks use of equinox, whose package only they need.

from equinox import nn as nn

class Module: ...
