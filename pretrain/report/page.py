"""`hapicl report`: one self-contained page about one run or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...common.page import Code, Note, Picture, Pictures, Section, Table, page
from ...engine.run_logger import LOG, read_config, read_metrics
from ..config.settings import flatten
from .curves import curve_pictures
from .features import feature_pictures
from .views import method_pictures, view_pictures

# what a reader looks at first; the label of each in the overview
OVERVIEW = {
    "loss": "loss",
    "knn/accuracy": "online kNN",
    "embedding/std": "embedding std",
    "embedding/effective_rank": "effective rank",
    "speed/samples_per_second": "samples/s",
    "speed/data_wait_fraction": "data wait",
    "memory/peak_gib": "peak GiB",
}


def write_report(runs: Sequence[str], out: str | Path, *, images: str | None = None) -> None:
    """Write the page.

    Args:
        runs: run folders.
        out: the HTML file.
        images: folder or packed file for the feature pictures; None: that of each run.

    Raises:
        UserError: for a folder that is no run, a run given twice, images that cannot be read, or a page
            that cannot be written.
    """
    refuse_unwritable(out)
    folders = [Path(run) for run in runs]
    names = run_names(folders)
    configs = dict(zip(names, (read_config(folder) for folder in folders), strict=True))
    metrics = dict(zip(names, (list(read_metrics(folder)) for folder in folders), strict=True))
    sections = [
        Section("Runs", [overview(configs, metrics), *_warnings(dict(zip(names, folders, strict=True)))]),
        Section("Curves", [Pictures(curve_pictures(metrics), minimum=340)]),
        Section("Settings", _settings(configs)),
    ]
    for name, folder in zip(names, folders, strict=True):
        sections.append(Section(f"What {name} saw and learned", _pictures(folder, configs[name], images)))
    text = page(
        "Pretraining report",
        sections,
        lead=f"{len(names)} run{'s' if len(names) > 1 else ''}: {', '.join(names)}",
        footer=f"made by hapicl {__version__}: hapicl report {' '.join(runs)}",
    )
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short names: the folders' own, or as much of the path as tells them apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is given twice; give each run folder once")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def overview(configs: dict[str, dict[str, Any]], metrics: dict[str, list[dict[str, float]]]) -> Table:
    """One row a run: what it is, how far it came, its last numbers."""
    rows = []
    shown = [key for key in OVERVIEW if any(key in line for lines in metrics.values() for line in lines)]
    for name, config in configs.items():
        last = _last_values(metrics[name])
        steps = int(last.get("step", 0))
        numbers = [_number(last.get(key)) for key in shown]
        settings = config["settings"]
        what = [name, settings["method"], settings["arch"], config["data"]["images"]]
        rows.append([*what, f"{steps} / {config['total_steps']}", config["environment"]["device"], *numbers])
    columns = ["run", "method", "backbone", "images", "steps", "device", *(OVERVIEW[key] for key in shown)]
    return Table(columns, rows, numeric=[3, *range(6, len(columns))])


def _last_values(lines: list[dict[str, float]]) -> dict[str, float]:
    """The newest value of every number."""
    newest: dict[str, float] = {}
    for line in lines:
        newest |= line
    return newest


def _number(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def _settings(configs: dict[str, dict[str, Any]]) -> list[Any]:
    """What differs between runs, or all settings of the one run."""
    flat = {name: dict(flatten(config["settings"])) for name, config in configs.items()}
    keys = sorted({key for settings in flat.values() for key in settings if not key.startswith("about.")})
    if len(flat) == 1:
        (settings,) = flat.values()
        return [Table((), [[key, str(settings[key])] for key in keys])]
    missing = "–"
    differing = [
        key for key in keys if len({str(settings.get(key, missing)) for settings in flat.values()}) > 1
    ]
    rows = [[key, *(str(settings.get(key, missing)) for settings in flat.values())] for key in differing]
    return [Table(["setting", *flat], rows, caption="settings that differ; the others are the same")]


def _warnings(folders: dict[str, Path]) -> list[Any]:
    """The warnings of the runs' logs."""
    found = []
    for name, folder in folders.items():
        log = folder / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        warnings = dict.fromkeys(line.split("  ", 1)[-1] for line in lines if "  warning" in line)
        found += [Note(f"{name}: {line}") for line in warnings]
    return found


def _pictures(folder: Path, config: dict[str, Any], images: str | None) -> list[Any]:
    """Crops with masks, the method's own pictures, and the features' principal components."""
    blocks: list[Any] = []
    views = view_pictures(folder)
    if views:
        blocks.append("Crops as the trainer saw them, with the mask's outline and how much is foreground.")
        blocks.append(Pictures(views, minimum=160))
    for caption, pixels in method_pictures(folder).items():
        blocks.append(Picture(pixels, caption))
    features = feature_pictures(folder, config, images)
    if isinstance(features, str):
        blocks.append(Note(features))
    else:
        blocks.append(
            "Features: the first three principal components of the last map over these images, as red, green "
            "and blue: the image, the map of this run, and the map of the same network with random weights. "
            "Objects in one colour mean features that hang together; what the random map shows as well are "
            "the image's own colours and edges."
        )
        blocks.append(Pictures(features, minimum=260))
    blocks.append(Code(f"hapicl pretrain --resume '{folder}'   # continue this run"))
    return blocks
