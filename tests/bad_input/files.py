"""Mistakes in files."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    ('save(folder / "a.safetensors")', TypeError, "save lacks tree: it takes path, tree, metadata, where"),
    ("save(None, model)", TypeError, "path must be a string or a path, not None"),
    ("save(3, model)", TypeError, "path must be a string or a path, not 3"),
    (
        'save(folder / "a.safetensors", {"a": 3})',
        TypeError,
        "only tensors can be saved, but at ['a'] is 3 (int): make it one, or text in the metadata",
    ),
    (
        'save(folder / "a.safetensors", 3)',
        TypeError,
        "only tensors can be saved, but the tree is 3 (int): make it one, or text in the metadata",
    ),
    (
        'save(folder / "a.safetensors", "model")',
        TypeError,
        "only tensors can be saved, but the tree is 'model' (str): make it one, or text in the metadata",
    ),
    (
        'save(folder / "a.safetensors", linear(2, 3))',
        ValueError,
        "at .weight is float32[3, 2] without values: save what initialize(key(0), model) returns",
    ),
    (
        'save(folder / "a.safetensors", nn.Linear(2, 3))',
        TypeError,
        "only tensors can be saved, but the tree is Linear(in_features=2, out_features=3, bias=True)",
    ),
    (
        'save(folder / "a.safetensors", x.to_sparse())',
        TypeError,
        "the tree is float32[4, 2] (torch.sparse_coo), which has no place in a safetensors file: convert it",
    ),
    (
        'save(folder / "a.safetensors", model, metadata={"epoch": 3})',
        TypeError,
        "metadata are texts by name, but here is 'epoch': 3; make it text with str() or json.dumps",
    ),
    (
        'save(folder / "a.safetensors", model, metadata={3: "a"})',
        TypeError,
        "metadata are texts by name, but here is 3: 'a'; make it text with str() or json.dumps",
    ),
    (
        'save(folder / "a.safetensors", model, where="nothing")',
        ValueError,
        "there is nothing to save, no leaf is in 'nothing'; the tree has [0].weight, [0].bias, [2].weight,",
    ),
    (
        'save(folder / "a.safetensors", model, where=lambda path, leaf: False)',
        ValueError,
        "there is nothing to save, where chooses no leaf; the tree has [0].weight, [0].bias, [2].weight,",
    ),
    ('load(folder / "model.safetensors")', TypeError, "load lacks like: it takes path, like, device, rename, where, strict"),
    ('load(model, folder / "model.safetensors")', TypeError, "path must be a string or a path, not a tuple"),
    ("load(None, model)", TypeError, "path must be a string or a path, not None"),
    ('load(folder / "model.safetensors", model, strict="no")', TypeError, "strict must be True or False, not 'no'"),
    (
        'load(folder / "model.safetensors", model, rename=lambda name: 3)',
        TypeError,
        "rename must give a path or None for each name, but for '[0].weight' it gives 3",
    ),
    (
        'load(folder / "model.safetensors", model, map_location="cpu")',
        TypeError,
        "load has no map_location: it takes path, like, device, rename, where, strict",
    ),
    ("load_metadata(model)", TypeError, "path must be a string or a path, not a tuple"),
    ("load_metadata(None)", TypeError, "path must be a string or a path, not None"),
    (
        'load_model(folder / "model.safetensors", model)',
        TypeError,
        "load_model takes 1 by place (path), not 2; by name, part, device",
    ),
    ('load_model(folder / "model.safetensors", part=3)', TypeError, "part must be a string, not 3"),
    ("load_model(model)", TypeError, "path must be a string or a path, not a tuple"),
    (
        'saved_as("")',
        ValueError,
        "a name in files is a text without brackets that is no word of theirs, not '': choose another",
    ),
    ("saved_as(3)", TypeError, "name must be a string, not 3"),
    ('saved_as("a")(3)', TypeError, "saved_as('a') registers a class or a function, not 3"),
    ('save(folder / "a.safetensors", model, metadata="text")', TypeError, "metadata must be a dict or None, not 'text'"),
    ('save(folder / "a.safetensors", model, metadata=[1])', TypeError, "metadata must be a dict or None, not [1]"),
    ('save(folder / "a.safetensors", model, where=3)', TypeError, "where must be a string, a function or None, not 3"),
    (
        'load(folder / "model.safetensors", model, rename=3)',
        TypeError,
        "rename must be a dict from names to paths, or a function of a name, not 3",
    ),
    (
        'load(folder / "model.safetensors", model, where=True)',
        TypeError,
        "where must be a string, a function or None, not True",
    ),
    ('load(folder / "model.safetensors", model, strict=None)', TypeError, "strict must be True or False, not None"),
    (
        'load(folder / "model.safetensors", model, device="gpu")',
        TypeError,
        'device must be a device, such as "cpu" or "cuda:0", or None, not \'gpu\'',
    ),
    (
        'load_model(folder / "model.safetensors", device="gpu")',
        TypeError,
        'device must be a device, such as "cpu" or "cuda:0", or None, not \'gpu\'',
    ),
    ("read_idx(3)", TypeError, "path must be a string or a path, not 3"),
    ("read_idx(True)", TypeError, "path must be a string or a path, not True"),
    ("read_idx(None)", TypeError, "path must be a string or a path, not None"),
    ('read_idx(b"images")', TypeError, "path must be a string or a path, not b'images'"),
    (
        'read_idx(folder / "text.txt")',
        ValueError,
        "text.txt is not an IDX file: it must begin with two zeros and a byte for the",
    ),
    (
        'write_csv(folder / "text.txt", [epoch])',
        ValueError,
        "text.txt is there, and holds something else than the log of a run: give another",
    ),
    ('write_csv(folder / "a.csv", 3)', TypeError, "history must be a list or a tuple, not 3"),
    ("write_csv(3, [epoch])", TypeError, "path must be a string or a path, not 3"),
    (
        'write_picture(folder / "a.png", "history")',
        TypeError,
        "a history is the epochs so far, in a list, as fit returns it and epoch.history holds it, not",
    ),
)
