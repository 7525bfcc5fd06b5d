"""What functions in files compute, compared with what they compute here."""

from fundl._compiling.trees import flatten


def worst(found: object, expected: object) -> float:
    """The largest difference, relative to the largest number of each tensor."""
    pairs = zip(flatten(found, "", constants=True).leaves, flatten(expected, "", constants=True).leaves, strict=True)
    differences = [0.0]
    for a, b in pairs:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.numel():
            largest = float(b.double().abs().max()) or 1.0
            differences.append(float((a.double() - b.double()).abs().max()) / largest)
    return max(differences)
