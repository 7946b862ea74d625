"""Make docs/fidelity.md, "as published" and "ours" side by side: `python docs/make_fidelity.py`.

What the originals have is in published.yaml; our side is read from the recipes and the methods' own settings,
so the page cannot promise what the code does not do. A test holds the page to this script.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from hapicl.common.config import build
from hapicl.pretrain.config.recipe_files import load_recipe
from hapicl.pretrain.config.settings import RunSettings, flatten
from hapicl.pretrain.methods.registry import method_class

FOLDER = Path(__file__).parent
PAGE = FOLDER / "fidelity.md"
HEAD = """# As published, and ours

Made by `docs/make_fidelity.py` from the recipes and the methods' own settings; a test holds it to them. What
the originals have is in `docs/published.yaml`, from a reading of their code and papers. Bold: ours
differs. The recipes for about 100,000 images and for small data are this project's own, and say so.

`hapicl` alone (the pixel loss without an instance term) and `hapicl_vit` were published by nobody.
"""


def ours(recipe: str) -> dict[str, Any]:
    """Every setting of a recipe by its dotted name, the method's defaults included."""
    settings = build(RunSettings, load_recipe(recipe))
    config = build(method_class(settings.method).Config, settings.config, where="config.")
    values = dict(flatten(settings.replace(config=config.model_dump()).model_dump()))
    values["optimizer.decay_one_dimensional"] = settings.optimizer.decays_one_dimensional
    return values


def shown(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " to ".join(map(shown, value)) if len(value) == 2 else ", ".join(map(shown, value))
    if isinstance(value, float) and not value.is_integer():
        return f"{value:g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def table(entry: dict[str, Any]) -> list[str]:
    """The rows of one method."""
    here = ours(entry["recipe"])
    lines = ["| item | as published | ours |", "|---|---|---|"]
    for name, published in entry["settings"].items():
        value = here[name]
        if name == "config.batch_norm_groups" and value is None:
            value = "groups of 32"
        left, right = shown(published), shown(value)
        lines.append(f"| `{name}` | {left} | {right if left == right else f'**{right}**'} |")
    for item, published, value in entry.get("in code", []):
        lines.append(
            f"| {item} | {published} | {value if value.startswith('the same') else f'**{value}**'} |"
        )
    return lines


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, entry in yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8")).items():
        parts.append(f"## {name}\n\nRecipe `{entry['recipe']}`, beside {entry['source']}.\n")
        parts.append("\n".join(table(entry)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
