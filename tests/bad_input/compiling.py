"""Mistakes in jit and scan."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    ("jit()", TypeError, "jit lacks function: it takes function, static, donate, max_traces"),
    ("jit(3)", TypeError, "what is compiled must be a function from tensors to tensors, not 3"),
    ("jit(None)", TypeError, "what is compiled must be a function from tensors to tensors, not None"),
    ('jit("f")', TypeError, "what is compiled must be a function from tensors to tensors, not 'f'"),
    ("jit(model)", TypeError, "what is compiled must be a function from tensors to tensors, not (Linear(weight=float32[8, 2],"),
    ('jit(lambda a: a, static="b")', ValueError, "static='b' is not a parameter of <lambda>(a)"),
    (
        "jit(lambda a: a, static=3)",
        TypeError,
        'jit(..., static=...) names arguments of the function, such as static="state", not 3',
    ),
    (
        "jit(lambda a: a, static=0)",
        TypeError,
        'jit(..., static=...) names arguments of the function, such as static="state", not 0',
    ),
    ('jit(lambda a: a, static=["a", "b"])', ValueError, "static='b' is not a parameter of <lambda>(a)"),
    ('jit(lambda a: a, max_traces="1")', TypeError, "max_traces must be an int or None, not '1'"),
    ("jit(lambda a: a, max_traces=1.5)", TypeError, "max_traces must be an int or None, not 1.5"),
    (
        "jit(lambda a: a, static_argnums=0)",
        TypeError,
        "jit has no static_argnums: it takes function, static, donate, max_traces",
    ),
    ("jit(lambda a: a, dynamic=True)", TypeError, "jit has no dynamic: it takes function, static, donate, max_traces"),
    (
        'jit(lambda a: a + 1)("x")',
        TypeError,
        "a is a str, 'x': compiled functions go from trees to trees, of tensors, None, records, tuples,",
    ),
    (
        'jit(lambda a, n: a * n, static="n")(x, torch.ones(2))',
        TypeError,
        "n is a tensor, which is no static value: its numbers are not a part of what is compiled",
    ),
    (
        'jit(lambda a, n: a * n, static="n")(x, [1])',
        TypeError,
        "n is [1], of type list, which cannot be hashed (unhashable type: 'list'): what is no tensor is a",
    ),
    (
        "jit(apply)(linear(2, 3), x)",
        ValueError,
        "the model has no values yet, only shapes: call initialize(key(0), model) and apply what it returns",
    ),
    ("jit(jit)(x)", TypeError, "what is compiled must be a function from tensors to tensors, not float32[4, 2]"),
    (
        "jit(step)(state, x)",
        TypeError,
        "a batch is a pair (x, target), not float32[4, 2]; the batches of a data set in memory are",
    ),
    ("scan()", TypeError, "scan lacks step: it takes step, max_traces"),
    ("scan(3)", TypeError, "what is compiled must be a function from tensors to tensors, not 3"),
    ("scan(None)", TypeError, "what is compiled must be a function from tensors to tensors, not None"),
    (
        "scan(model)",
        TypeError,
        "what is compiled must be a function from tensors to tensors, not (Linear(weight=float32[8, 2],",
    ),
    ("scan(step, length=3)", TypeError, "scan has no length: it takes step, max_traces"),
    ("scan(step)(state)", TypeError, "a scan takes the state and the batches, by place"),
    (
        "scan(step)(state, x)",
        TypeError,
        "a batch is a pair (x, target), not float32[2]; the batches of a data set in memory are",
    ),
    (
        "scan(step)(state, [(x, target)])",
        TypeError,
        "a batch is a pair (x, target), not [(float32[2], float32[1])]; the",
    ),
    ("scan(step)(state, iter([(x, target)]))", TypeError, "data must be a tensor, not list_iterator: write torch.tensor(...)"),
    ("scan(step)(state, None)", ValueError, "the data holds no tensor: None"),
    ("scan(step)(state, ())", ValueError, "the data holds no tensor: ()"),
    ("scan(step)(state, 3)", TypeError, "data must be a tensor, not int: write torch.tensor(...)"),
    (
        "scan(step)(state, (torch.ones(3, 4, 2), torch.ones(2, 4, 1)))",
        ValueError,
        "the tensors of the data must have the same number of rows (first axis), but data[0] has 3, data[1]",
    ),
    (
        "scan(step)(state, (torch.ones(0, 4, 2), torch.ones(0, 4, 1)))",
        ValueError,
        "the data is empty: (float32[0, 4, 2], float32[0, 4, 1]) has 0 rows",
    ),
    (
        "scan(step)(state, (torch.tensor(1.0), torch.tensor(1.0)))",
        ValueError,
        "data[0] is a single number, but each tensor of the data needs a first axis, of its examples",
    ),
    (
        "scan(step)((torch.ones(3, 4, 2), torch.ones(3, 4, 1)), state)",
        ValueError,
        "data.step is a single number, but each tensor of the data needs a first axis, of its examples",
    ),
    (
        "scan(step)(state, (torch.ones(3, 4, 3), torch.ones(3, 4, 1)))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (4, 3): its last axis must be of size 2",
    ),
    (
        "scan(lambda s, b: s + b)(torch.tensor(0.0), torch.ones(3))",
        TypeError,
        "a step returns a pair, the next state and a report, not float32[]",
    ),
    (
        "scan(lambda s, b: (s + b, 1))(torch.tensor(0), torch.ones(3))",
        TypeError,
        "a step must return a state like the one that it is given: state is int64[] before it, and float32[]",
    ),
    (
        "scan(lambda s, b: (s + b, s))(torch.tensor(0), torch.ones(3))",
        TypeError,
        "a step must return a state like the one that it is given: state is int64[] before it, and float32[]",
    ),
    (
        "scan(lambda s, b: (s.unsqueeze(0), s))(torch.tensor(0.0), torch.ones(3))",
        TypeError,
        "a step must return a state like the one that it is given: state is float32[] before it, and",
    ),
    (
        "scan(lambda s, b: (s, b, s))(torch.tensor(0.0), torch.ones(3))",
        TypeError,
        "a step returns a pair, the next state and a report, not (float32[], float32[], float32[])",
    ),
    (
        "scan(lambda s, b: (s + b, s))(0.0, torch.ones(3))",
        TypeError,
        "state is a float, 0.0: compiled functions go from trees to trees, of tensors, None, records,",
    ),
    (
        "scan(lambda s, b: (s + b, s))(torch.tensor(0.0), range(3))",
        TypeError,
        "data must be a tensor, not range: write torch.tensor(...)",
    ),
    (
        "scan(lambda s, b: (s + b, s))(torch.tensor(0.0), [1.0, 2.0])",
        TypeError,
        "data[0] must be a tensor, not float: write torch.tensor(...)",
    ),
    ("scan(lambda s, b: (s + b, s))(torch.ones(3))", TypeError, "a scan takes the state and the batches, by place"),
)
