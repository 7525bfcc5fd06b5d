"""Trees on disk: a model, the state of an optimizer, or that of a whole training run, in a safetensors file.

A file holds the tensors of a tree by name, and texts: no code, so reading one runs none, whoever wrote it. Its
tensors are read by every program that knows the format. A tensor's name is its path as `tree.paths` has it, which is what
one writes after the tree to get there: ``[0].weight`` of a model, ``.model[0].weight`` and ``.step`` of a `TrainState`; the
name of a tree that is a tensor itself is empty.

The metadata tell what the tree is made of, and have a checksum of each tensor, and one of the rest, so that what a disk or a
network has changed is found.

`load` fills a tree, `like`, that the program made as the saved one was: layers, sizes and rates are the program's. Where their
names, shapes and dtypes agree, the tree comes back bit for bit. `load_model` makes the model of what the file says.
"""

from fundl.saving._background import Saver as Saver
from fundl.saving._loading import Unmatched as Unmatched, load as load, load_metadata as load_metadata
from fundl.saving._model import load_model as load_model
from fundl.saving._registry import saved_as as saved_as
from fundl.saving._writing import save as save
