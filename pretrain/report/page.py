"""`hapicl report`: one self-contained page about one run or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...common.page import Block, Code, Folded, Note, Picture, Pictures, Section, Table, page
from ...common.terminal.progress import duration
from ...engine.loggers.run_files import LOG, read_config, read_metrics
from ..config.settings import flatten
from .curves import constants, headline_charts, other_charts
from .features import feature_pictures
from .views import SHOWN_SIDE, method_pictures, view_pictures

# what a reader looks at first; the label of each in the table of last numbers
OVERVIEW = {
    "loss": "loss",
    "knn/accuracy": "online kNN",
    "embedding/std": "embedding std",
    "embedding/effective_rank": "effective rank",
    "speed/samples_per_second": "samples/s",
    "speed/data_wait_fraction": "data wait",
    "memory/peak_gib": "peak GiB",
}
FRACTIONS = {"knn/accuracy", "speed/data_wait_fraction"}  # shown as per cent
MISSING = "–"


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
    by_name = dict(zip(names, folders, strict=True))
    sections = [
        Section("Runs", [*overview(configs, metrics, by_name), *_warnings(by_name)]),
        Section("Charts", _charts(metrics, configs)),
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


def overview(
    configs: dict[str, dict[str, Any]], metrics: dict[str, list[dict[str, float]]], folders: dict[str, Path]
) -> list[Table]:
    """What each run is, one row a run, and its last numbers."""
    columns = ["run", "method", "backbone", "px", "images", "steps", "epochs", "batch", "learning rate"]
    columns += ["parameters", "duration", "begun", "device"]
    rows = [_about(name, config, metrics[name], folders[name]) for name, config in configs.items()]
    last = {name: _last_values(lines) for name, lines in metrics.items()}
    shown = [key for key in OVERVIEW if any(key in values for values in last.values())]
    numbers = [
        [name, *(_number(values.get(key), per_cent=key in FRACTIONS) for key in shown)]
        for name, values in last.items()
    ]
    return [
        Table(columns, rows, numeric=range(3, 11)),
        Table(
            ["run", *(OVERVIEW[key] for key in shown)],
            numbers,
            caption="last numbers; losses of different methods are different quantities",
            numeric=range(1, len(shown) + 1),
        ),
    ]


def _about(name: str, config: dict[str, Any], lines: list[dict[str, float]], folder: Path) -> list[object]:
    """A run's row of the table."""
    settings, stem = config["settings"], config["settings"].get("stem", "auto")
    steps = int(_last_values(lines).get("step", 0))
    an_epoch = config.get("steps_per_epoch")
    logged = (folder / LOG).read_text(encoding="utf-8") if (folder / LOG).exists() else ""
    return [
        name,
        settings["method"],
        settings["arch"] + ("" if stem == "auto" else f" ({stem})"),
        settings.get("image_size", MISSING),
        config["data"]["images"],
        f"{steps} / {config['total_steps']}",
        _number(steps / an_epoch if an_epoch else None),
        settings.get("batch_size", MISSING),
        _number(config.get("lr")),
        f"{config['parameters'] / 1e6:.1f} M" if "parameters" in config else MISSING,
        duration(sum(line.get("seconds", 0.0) for line in lines)),
        logged[:10] or MISSING,
        config["environment"]["device"],
    ]


def _charts(metrics: dict[str, list[dict[str, float]]], configs: dict[str, dict[str, Any]]) -> list[Block]:
    """The charts to look at first, the rest folded, what never moves in words."""
    blocks: list[Block] = [
        "A point shows its value under the pointer. A faint line is what was logged, the strong one over it "
        "its moving average. For zoom: tensorboard --logdir RUN.",
        Pictures(headline_charts(metrics, configs), minimum=400),
    ]
    if others := other_charts(metrics):
        blocks.append(Folded(f"{len(others)} more charts", [Pictures(others, minimum=400)]))
    if still := constants(metrics):
        blocks.append("Constant: " + "; ".join(f"{name} {text}" for name, text in still.items()) + ".")
    return blocks


def _last_values(lines: list[dict[str, float]]) -> dict[str, float]:
    """The newest value of every number."""
    newest: dict[str, float] = {}
    for line in lines:
        newest |= line
    return newest


def _number(value: float | None, *, per_cent: bool = False) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return MISSING
    return f"{value:.1%}" if per_cent else f"{value:.4g}"


def _settings(configs: dict[str, dict[str, Any]]) -> list[Any]:
    """What differs between runs, or all settings of the one run."""
    flat = {name: dict(flatten(config["settings"])) for name, config in configs.items()}
    keys = sorted({key for settings in flat.values() for key in settings if not key.startswith("about.")})
    if len(flat) == 1:
        (settings,) = flat.values()
        return [Folded(f"All {len(keys)} settings", [Table((), [[key, str(settings[key])] for key in keys])])]
    differing = [
        key for key in keys if len({str(settings.get(key, MISSING)) for settings in flat.values()}) > 1
    ]
    rows = [[key, *(str(settings.get(key, MISSING)) for settings in flat.values())] for key in differing]
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
        masked = any(view.caption for view in views)
        mask_words = ", with the mask's outline and how much is foreground" if masked else ""
        blocks.append(f"Crops as the trainer saw them{mask_words}; the views of one image side by side.")
        blocks.append(Pictures(views, minimum=2 * SHOWN_SIDE))
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
        blocks.append(Pictures(features, minimum=480))
    blocks.append(Code(f"hapicl pretrain --resume '{folder}'   # continue this run"))
    return blocks
