"""Checkpoints with valid checksums and wrong content: one thing is missing, of another kind, or odd."""

import copy
import pathlib
from typing import Any

import numpy as np
import torch

ODD = (
    *(None, True, -1, 0, 2**70, 0.5, float("nan"), "", "text", "\ud800"),
    *([], {}, [1, "a"], {"a": 1}, {1: 2}, (), torch.zeros(0), torch.zeros(3, dtype=torch.complex64)),
    *(torch.zeros((), dtype=torch.bool), torch.ones(2, 2, dtype=torch.bfloat16), torch.eye(3).to_sparse()),
)


def craft(good: pathlib.Path, out: pathlib.Path, number: int) -> str:
    """Write variant `number` of a good checkpoint; gives in words what was changed."""
    generator = np.random.default_rng(number)
    content = torch.load(good, map_location="cpu", weights_only=True)
    changed, what = mutate(content, generator)
    torch.save(changed, out)
    return what


def mutate(content: Any, generator: np.random.Generator) -> tuple[Any, str]:
    """Change one thing at a random place of a nested structure; gives the new structure and words."""
    content = copy.copy(content) if isinstance(content, dict | list) else content
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    depth_left = bool(keys)
    if depth_left:
        # the few keys at the top are as likely as the many below them
        key = keys[generator.integers(len(keys))]
        inner = content[key]
        if isinstance(inner, dict | list) and inner and generator.random() < 0.7:
            content[key], what = mutate(inner, generator)
            return content, f"{key!r} > {what}"
        if isinstance(inner, torch.Tensor) and generator.random() < 0.6:
            content[key], what = change_tensor(inner, generator)
            return content, f"{key!r}: {what}"
        kind = generator.integers(4)
        if kind == 0:
            del content[key]
            return content, f"{key!r} is missing"
        if kind == 1 and isinstance(content, dict):
            content[ODD[generator.choice([0, 2, 5, 8, 9])]] = content.pop(key)
            return content, f"{key!r} is renamed"
        odd = ODD[generator.integers(len(ODD))]
        content[key] = odd
        return content, f"{key!r} is {odd!r}"
    return ODD[generator.integers(len(ODD))], "something else"


def change_tensor(tensor: torch.Tensor, generator: np.random.Generator) -> tuple[torch.Tensor, str]:
    """A tensor of another shape or type, or with odd numbers in it."""
    kinds = {
        "another axis": lambda: tensor[None],
        "one more row": lambda: torch.cat([tensor, tensor[-1:]]) if tensor.ndim else tensor[None],
        "empty": lambda: tensor.flatten()[:0],
        "flat": lambda: tensor.flatten(),
        "float64": lambda: tensor.double(),
        "int8": lambda: tensor.to(torch.int8),
        "complex": lambda: tensor.to(torch.complex64),
        "nan": lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor - 1,
        "huge": lambda: torch.full_like(tensor, 3e38 if tensor.is_floating_point() else 120),
    }
    name = list(kinds)[generator.integers(len(kinds))]
    return kinds[name](), name
