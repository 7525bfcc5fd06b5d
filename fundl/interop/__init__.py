"""Rooms that know other frameworks. `import fundl` loads none of them: ``from fundl.interop import torch_nn``."""
