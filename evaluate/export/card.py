"""The model card: what a stranger must know of the weights, from files alone.

Nothing stands in it that no file says: what was not recorded is called not recorded, what was not measured
not measured. Paths of the machine that trained stay out of it, for a card is made to be published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.errors import UserError
from ...data.images.inputs import Inputs
from ...data.masks.reader import MaskError, MaskReader
from ...models.weights import WeightsInfo
from ...pretrain.methods.registry import METHODS, method_class
from ..report.table import Cell, input_size
from ..result import read_result
from .usage import Snippets

# settings that say where things lay on the machine of the training
PLACES = frozenset({"images", "masks", "out", "weights", "resume", "knn_train", "knn_val", "about"})
RESULTS = "results"  # the folder in which `hapicl evaluate` leaves them
UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is made of.

    `config` is the run's config.json, None for weights that lie in no run folder; `results` are result files
    of these very weights; `notes` are sentences on the network's form.
    """

    name: str
    info: WeightsInfo
    image_size: int
    inputs: Inputs
    config: dict[str, Any] | None
    results: Sequence[dict[str, Any]]
    snippets: Snippets
    license: str | None = None
    notes: Sequence[str] = ()


def write_card(card: Card) -> str:
    """The card as Markdown with the hub's front matter."""
    parts = [
        _front_matter(card),
        f"# {card.name}\n",
        _lead(card),
        _table("Network", _network(card)),
        *(f"{note}\n" for note in card.notes),
        _table("Training", _training(card)),
        _data(card),
        _results(card.results),
        _loading(card.snippets),
        _settings(card),
        _rights(card),
    ]
    return "\n".join(part for part in parts if part)


def results_beside(folder: Path | None, sha256: str) -> list[dict[str, Any]]:
    """Results of the weights with this digest, in the run folder, beside it, and where evaluations go.

    Args:
        folder: of the run or the weight file; None looks in `results` only.
        sha256: of the weight file.
    """
    places = [Path(RESULTS)]
    if folder is not None:
        places += [folder, folder / RESULTS, folder.parent / RESULTS]
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(path for place in places for path in place.glob("*.json")):
        try:
            result = read_result(path)
        except UserError:  # some other JSON
            continue
        if result["weights"]["sha256"] == sha256:
            found[path.resolve()] = result
    return list(found.values())


def results_given(paths: Sequence[Path], info: WeightsInfo) -> list[dict[str, Any]]:
    """Result files that a user names.

    Raises:
        UserError: for a file that is no result, or one of other weights.
    """
    found = []
    for path in paths:
        result = read_result(path)
        if result["weights"]["sha256"] != info.sha256:
            raise UserError(f"{path} is a result of other weights than {info.spec}; leave it out")
        found.append(result)
    return found


def _front_matter(card: Card) -> str:
    """What the hub reads."""
    lines = ["---"]
    if card.license is not None:
        lines.append(f"license: {json.dumps(card.license)}")
    lines += ["library_name: timm", "pipeline_tag: image-feature-extraction"]
    lines += ["tags:", "- timm", "- self-supervised-learning", "- hapicl"]
    return "\n".join([*lines, "---", ""])


def _lead(card: Card) -> str:
    """What it is, in a sentence or two."""
    if card.info.method in METHODS:
        source = method_class(card.info.method).source
        return f"A {card.info.arch} backbone pretrained without labels by `{card.info.method}` ({source}).\n"
    return f"A {card.info.arch} backbone. The method that trained it is {UNKNOWN}.\n"


def _network(card: Card) -> list[tuple[str, Any]]:
    """Rows about the network and its input."""
    return [
        ("architecture", f"`{card.info.arch}`"),
        ("stem", f"`{card.info.stem}`"),
        ("input", f"{card.image_size} x {card.image_size} pixels, {_channels(card.inputs)}"),
        ("SHA-256 of the weights it was made from", f"`{card.info.sha256}`"),
    ]


def _channels(inputs: Inputs) -> str:
    """What a file's values become, in words."""
    if inputs.are_photographs and inputs.mean is None:
        return "RGB, ImageNet's mean and deviation"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in inputs.statistics)
    bands = f" (bands {', '.join(map(str, inputs.bands))} of TIFF files)" if inputs.bands else ""
    return f"{inputs.in_channels} channels{bands} in 0 .. 1, mean {mean}, deviation {std}"


def _training(card: Card) -> list[tuple[str, Any]]:
    """Rows about the run."""
    if card.config is None:
        return [("run", UNKNOWN)]
    settings, environment = card.config["settings"], card.config.get("environment", {})
    start = card.config.get("weights")
    return [
        ("method", f"`{settings['method']}`"),
        ("started from", f"weights of SHA-256 `{start['sha256']}`" if start else "random weights"),
        ("optimiser steps", card.config["total_steps"]),
        ("batch", f"{settings.get('batch_size', UNKNOWN)} images"),
        ("precision", settings.get("precision", UNKNOWN)),
        ("seed", settings.get("seed", UNKNOWN)),
        ("device", f"{environment.get('device', UNKNOWN)}, {environment.get('processes', 1)} process(es)"),
        ("hapicl, torch", f"{environment.get('hapicl', UNKNOWN)}, {environment.get('torch', UNKNOWN)}"),
    ]


def _data(card: Card) -> str:
    """The images and masks it learnt from."""
    if card.config is None:
        return _table("Data", [("images", UNKNOWN), ("masks", UNKNOWN)])
    data = card.config["data"]
    rows = [
        ("images", f"{data['images']:,}, without labels"),
        ("SHA-256 of their sorted relative paths", f"`{data.get('paths_sha256', UNKNOWN)}`"),
    ]
    digest = data.get("masks_digest")
    if digest is None:
        return _table("Data", [*rows, ("masks", "none")])
    rows.append(("masks", f"content digest `{digest}`"))
    recipe = _mask_recipe(card.config["settings"].get("masks"), digest)
    if recipe is None:
        rows.append(("recipe of the masks", f"{UNKNOWN} here: their file is not where the run read it"))
        return _table("Data", rows)
    return _table("Data", rows) + _folded("Recipe of the masks", recipe)


def _mask_recipe(path: str | None, digest: str) -> dict[str, Any] | None:
    """How the masks were made, if the file that the run read is still there."""
    if path is None or not Path(path).is_file():
        return None
    try:
        reader = MaskReader(path)
        return reader.recipe if reader.content_digest == digest else None
    except MaskError:
        return None


def _results(results: Sequence[dict[str, Any]]) -> str:
    """A row for each measurement."""
    if not results:
        return "## Results\n\nNot measured.\n"
    lines = ["| protocol | test data | input, px | metric | per cent (runs) |", "|---|---|---:|---|---:|"]
    for result in results:
        test = result["data"].get("test") or {}
        name = test.get("name") or Path(test.get("root", "")).name or UNKNOWN
        count = f", {test['images']:,} images" if isinstance(test.get("images"), int) else ""
        headline = result["headline"]
        cell = Cell(result["mean"][headline], result["std"][headline], len(result["runs"]))
        lines.append(
            f"| {result['protocol']} | {name}{count} | {input_size(result) or UNKNOWN} | {headline} "
            f"| {cell.text()} |"
        )
    told = "Measured by `hapicl evaluate` on these weights: mean ± standard deviation over runs."
    return "\n".join(["## Results\n", f"{told}\n", *lines, ""])


def _loading(snippets: Snippets) -> str:
    """The lines of every library."""
    blocks = [f"{library}:\n\n```python\n{lines}\n```\n" for library, lines in snippets.items()]
    return "\n".join(["## To use it\n", *blocks])


def _settings(card: Card) -> str:
    """Everything that was set, without places."""
    if card.config is None:
        return ""
    settings = {name: value for name, value in card.config["settings"].items() if name not in PLACES}
    return _folded("Settings of the run", settings)


def _rights(card: Card) -> str:
    """Licence and citation."""
    told = card.license or "not stated. Ask whoever published these weights"
    cited = [f"- hapicl {__version__} (its CITATION.cff lists the papers behind every part)"]
    if card.info.method in METHODS:
        cited.insert(0, f"- the method: {method_class(card.info.method).source}")
    return "\n".join(["## Licence\n", f"{told}.\n", "## Citation\n", *cited, ""])


def _table(heading: str, rows: Sequence[tuple[str, Any]]) -> str:
    """Two columns below a heading."""
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([f"## {heading}\n", "| | |", "|---|---|", *lines, ""])


def _folded(summary: str, values: dict[str, Any]) -> str:
    """A mapping behind a click."""
    text = json.dumps(values, indent=1, sort_keys=True)
    return f"\n<details><summary>{summary}</summary>\n\n```json\n{text}\n```\n\n</details>\n"
