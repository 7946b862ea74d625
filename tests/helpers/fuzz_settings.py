"""Values that users may type, for every key of a run, its optimiser, its schedule and the methods' Config."""

import json
import pathlib
import random
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import joint
import torch
from torch import nn

from hapicl.common.config import Settings, build
from hapicl.common.errors import UserError
from hapicl.data.loading.photometric import draw_row
from hapicl.engine.optimizers import build_optimizer
from hapicl.engine.schedule import lr_factor
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.config.settings import RunSettings, parse_overrides
from hapicl.pretrain.methods.registry import METHODS, method_class

# as they stand after `--set key=` or in a recipe
VALUES = (
    *("null", "~", "", "true", "false", "yes", "no", "on", "''", '" "', "text", "auto", "none"),
    *("0", "1", "2", "3", "16", "-1", "010", "0x1F", "1_000", "1000000007", "1e20", "1.0e20"),
    *("9" * 30, "9" * 5000, "0.0", "0.5", "1.0", "1.5", "-0.5", "1e-4", "1e-300", "1e300", "1e400"),
    *("-1e300", "nan", ".nan", ".inf", "-.inf", "2024-01-01", "2024-13-45", "2024-01-01T10:00:00Z"),
    *("12:30", "0b_", "!!binary aGVsbG8=", "!!set {a}", "!!int x", "!!bool x", "? x", "--- 1", "x" * 300),
    *("[]", "[0.5]", "[0.2, 0.9]", "[0.9, 0.2]", "[1, 1]", "[0, 0]", "[-1, 2]", "[0.5, null]", "[a, b]"),
    *("[true, false]", "[1, 2, 3]", "[[1]]", "[1e300, 1e300]", "[[0.1, 0.2], 3]", "{}", "{a: 1}", "{1: 2}"),
    *("{null: 1}", "{true: 1}", "{[1]: 2}", "{a: {b: {c: 1}}}", "&a [*a]", "&a {b: *a}", "*a"),
    *("{a: 1, a: 2}", "[1", "{a", "@x", '"\\0"', '"\\ud800"', '"a\\nb"', "!!python/object:os.system {}"),
)


LIKELY = (
    *("null", "true", "false", "0", "1", "2", "3", "16", "64", "0.25", "0.5", "1.0", "1e-4", "1e-30", "1e5"),
    *("[0.2, 0.9]", "[0.5, 0.5]", "[0.1, 1]", "resnet18", "vit_tiny_patch16_224", "test_vit", "stride1"),
    *("patch8", "patch7", "patch100000000", "{jitter: 1, hue: 0.5}", "{name: lars, trust: 0.1}", "auto"),
    *("{name: steps, milestones: [0.5], gamma: 0}", "{name: poly, power: 0}", "hapicl_m", "mae", "cpu"),
)


@dataclass(frozen=True)
class Case:
    """One thing typed: `--set` pairs on a small recipe of a method."""

    method: str
    overrides: tuple[str, ...]


def every_key() -> dict[tuple[str, str], list[str]]:
    """The words that each (method, dotted key) may be; a key that methods share in one form is taken once."""
    found = {("simclr", key): words for key, _, words in _entries(RunSettings)}
    found |= {("simclr", key): [] for key in ("no_such_key", "optimizer.no_such_key", "config.no_such_key")}
    seen = set()
    for method in METHODS:
        for key, form, words in _entries(method_class(method).Config, "config."):
            if (key, form) not in seen:
                seen.add((key, form))
                found[method, key] = words
    return found


def _entries(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Dotted names of a class of settings, nested ones too, each with what it takes and its choices."""
    for name, field in kind.model_fields.items():
        words = [word for word in typing.get_args(field.annotation) if isinstance(word, str)]
        yield f"{prefix}{name}", repr((field.annotation, field.metadata)), words
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _entries(field.annotation, f"{prefix}{name}.")


def cases(count: int, *, seed: int = 0) -> Iterator[Case]:
    """So many cases, the same for the same seed: each key in turn, by halves with any value and a likely one.

    Every fourth case sets a second key of the same method or run.
    """
    draw = random.Random(seed)
    every = every_key()
    order = list(every)
    for number in range(count):
        likely = number // len(order) % 2 == 1
        method, key = order[number % len(order)]
        pairs = [f"{key}={_value(draw, every[method, key], likely)}"]
        if number % 4 == 3:
            names = [name for name in order if name[0] == method or not name[1].startswith("config.")]
            other = draw.choice(names)
            pairs.append(f"{other[1]}={_value(draw, every[other], likely)}")
        yield Case(method, tuple(pairs))


def _value(draw: random.Random, words: list[str], likely: bool) -> str:
    """One value: of those that may well be taken, or any."""
    return draw.choice([*words, *LIKELY] if likely else VALUES)


def outcome(case: Case, folder: pathlib.Path | None = None) -> str:
    """Go as far as a run goes before its data: settings, optimiser, schedule, method, one step.

    Args:
        case: what is typed.
        folder: where the pairs stand in a recipe's file instead of `--set`.

    Returns:
        "refused", or "accepted".

    Raises:
        ValueError: if the refusal is not one line. Anything else that is raised is the traceback that a
            user would see.
    """
    data = {"images": "photos", "masks": "masks.h5"}
    given = {key: value for key, value in data.items() if key not in names_of(case)}
    try:
        if folder is None:
            settings, _ = resolve(given, recipe=f"{case.method}_small", overrides=case.overrides)
        else:
            (folder / "recipe.yaml").write_text(recipe_text(case), encoding="utf-8")
            settings, _ = resolve(given, recipe=str(folder / "recipe.yaml"))
        json.dumps(settings.model_dump(mode="json"))
        if settings.method == case.method:
            _train_a_step(case.method, settings, parse_overrides(case.overrides).get("config", {}))
    except UserError as error:
        if not str(error) or "\n" in str(error):
            raise ValueError(f"not one line: {error}") from error
        return "refused"
    except OSError as error:
        if error.filename is None:  # `cli.main` says in one line what the system says of a file
            raise
        return "refused"
    return "accepted"


def recipe_text(case: Case) -> str:
    """The pairs as lines of a recipe, dotted keys as nested mappings."""
    lines = [] if "method" in names_of(case) else [f"method: {case.method}"]
    for pair in case.overrides:
        key, _, value = pair.partition("=")
        *groups, name = key.split(".")
        lines += [f"{'  ' * depth}{group}:" for depth, group in enumerate(groups)]
        lines.append(f"{'  ' * len(groups)}{name}: {value}")
    return "\n".join(lines) + "\n"


def names_of(case: Case) -> list[str]:
    """The keys that a case sets."""
    return [pair.partition("=")[0] for pair in case.overrides]


def _train_a_step(name: str, settings: RunSettings, changes: dict[str, Any]) -> None:
    """Step the optimiser; if the config of the method changed, compute the loss of its tiny form."""
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(
        layer, settings.optimizer, batch_size=settings.batch_size, device=torch.device("cpu")
    )
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for step in (0, 1, 50, 99):
        lr_factor(settings.schedule, step, 100, 10)
    if changes:
        config = method_class(name).Config(**settings.config)
        small = {key: value for key, value in joint.CONFIGS[name].items() if key not in changes}
        chosen = {key: getattr(config, key) for key in changes}
        try:
            build(method_class(name).Config, small | chosen)
        except UserError:  # the tiny sizes do not go with this value, the method's own do
            small = {}
        method, needs = joint.build(name, **small, **chosen)
        for view in needs.views:
            draw_row(joint.counter_generator(0, 0, 0, 0, "fuzz"), view.photometric)
        method.step(joint.made_up_batch(needs))
        method.after_step(0, 10)
