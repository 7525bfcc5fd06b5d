"""Compiled functions in pickles: by their names, as functions are, or as what they were made of."""

import pkgutil


def pickled(compiled: object, function: object, made: tuple[object, ...]) -> str | tuple[object, ...]:
    """What `__reduce__` of a compiled function returns.

    Args:
        compiled: the compiled function.
        function: that it is of.
        made: a callable that makes one like it, and its arguments: for another process, which compiles it anew.

    Raises:
        TypeError: the function has no name by which another process finds it.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module and name and "<" not in name:
        try:
            if pkgutil.resolve_name(f"{module}:{name}") is compiled:
                return str(name)
        except (AttributeError, ImportError, ValueError):
            pass
    elif "<" in name:
        raise TypeError(
            f"{name} cannot be pickled, compiled or not: it is made inside of a function, where no other process finds it;"
            " define it at the top of a module, or hand on what was compiled, by save and load"
        )
    return made
