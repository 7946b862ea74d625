"""docs/claims.md and its figures, made from what the claims store holds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from claims_columns import Column
from claims_rows import GROUPS, RANDOM, ROWS, Row
from claims_store import ClaimsStore
from claims_table import CLAIMS, QUESTIONS, Claim, Values, counted, lines_of
from matplotlib.figure import Figure

from hapicl.common.atomic_files import atomic_write
from hapicl.evaluate.compare.statistics import SEEDS_NEEDED, paired_difference
from hapicl.evaluate.report.page import bars
from hapicl.evaluate.report.table import Cell, ResultTable

LENGTH = "eight epochs: methods have left their random start in some columns and not in others."
DOES_NOT_TELL = (
    "Nothing here reproduces or refutes a number of a paper, "
    "whose images, backbones and lengths are ten to a thousand times larger, and an order of methods may "
    "turn with any of them. Dense terms have few cells to work on at 4 x 4. Rows may be compared within a "
    "column only; the ViT rows have another backbone."
)
SCOPE = {
    "smoke": "This is the smoke scale: a few steps, to show that every row and column runs. It does not say "
    "which method is better: at this length the methods have hardly left their random start.",
    "cpu": "Photographs of 64 pixels, timm's `test_resnet` (0.4 million weights; `test_vit` for the ViT "
    f"rows) with a last map of 4 x 4 (8 x 8) cells, {LENGTH} Some "
    "rows were measured [with a ResNet-18](claims-resnet18.md) as well. " + DOES_NOT_TELL,
    "resnet18": "Photographs of 64 pixels, a ResNet-18 (or ViT-Ti) with a last map of 4 x 4 (8 x 8) cells, "
    f"{LENGTH} Other rows and seeds were measured [with a smaller network](claims.md). " + DOES_NOT_TELL,
    "small": "The images, the length and the backbones are small. Nothing here reproduces or refutes a "
    "number of a paper; rows may be compared within a column only. The ViT rows have another backbone.",
}
TITLES = {
    "smoke": "(smoke scale)",
    "cpu": "at the scale of a CPU",
    "resnet18": "with a ResNet-18",
    "small": "at the small scale",
}
HOLES_FILLED = ("cpu", "resnet18")  # scales whose masks are older than `max_hole` of the mask recipes
BASELINES = (
    "`random` is the same backbone with random weights and with BatchNorm statistics re-estimated on the "
    "training images of each evaluation; `random-untouched` has the statistics of a fresh network, which any "
    "training replaces within some thirty steps whatever it learns, so it is no baseline."
)
NOTE = (
    "Per cent, mean ± sample standard deviation over seeds (number of seeds); a seed covers pretraining and "
    "evaluation. Each number is the last step's, never the best. A dash: not run."
)


def write_page(docs: Path, store: ClaimsStore, every: Sequence[Column], failed: Sequence[str]) -> None:
    """Write the page of a scale (docs/claims.md is that of `cpu`) and its two figures."""
    docs.mkdir(parents=True, exist_ok=True)
    values = store.values()
    titles = measured(values, [column.title for column in every])
    page = page_name(store.scale)
    pictures = {f"{page}.png": bars(results(values, titles, [*RANDOM, *GROUPS["methods"]]))}
    pictures[f"{page}_curves.png"] = curves(store, values, titles)
    for name, figure in pictures.items():
        with atomic_write(docs / name) as part:
            figure.savefig(part, format="png", dpi=110, facecolor="white")
    with atomic_write(docs / f"{page}.md") as part:
        part.write_text("\n\n".join(parts(store, values, [column.title for column in every], failed)) + "\n")
    print(f"wrote {docs / page}.md with its figures, {store.file}")


def page_name(scale: str) -> str:
    """Name of a scale's page, without suffix."""
    return "claims-resnet18" if scale == "resnet18" else "claims"


def measured(values: Values, titles: Sequence[str]) -> list[str]:
    """The columns in which any row has a number."""
    return [title for title in titles if any(column == title for _, column in values)]


def parts(store: ClaimsStore, values: Values, every: Sequence[str], failed: Sequence[str]) -> Iterator[str]:
    """The page, part by part; `every` column that the scale has, measured or not."""
    titles = measured(values, every)
    known = {row for row, _ in values}
    yield f"# The claims table {TITLES[store.scale]}"
    yield SCOPE[store.scale]
    yield BASELINES
    yield from statements(values, titles)
    yield f"![Means and deviations over seeds]({page_name(store.scale)}.png)"
    yield "## Methods"
    yield NOTE
    for vit in (False, True):
        rows = [row for row in (*RANDOM, *GROUPS["methods"]) if row.vit is vit]
        if any((row.name, title) in values for row in rows for title in titles):
            yield "On a Vision Transformer:" if vit else "On a ResNet:"
            yield numbers(values, titles, rows)
    yield "## The papers' claims"
    yield deciding()
    for claim in CLAIMS:
        yield from told(values, titles, claim)
    for claim, group in zip(QUESTIONS, ("masks", "loop", "starts", "trials", "machines"), strict=True):
        if any(row.name in known for row in GROUPS[group]):
            yield f"## {claim.text.split(':')[0]}"
            yield numbers(values, titles, [*partners(claim, GROUPS[group]), *GROUPS[group]])
            yield from told(values, titles, claim)
    if store.runs:
        yield "## Learning curves"
        yield f"![What is reached after how many steps, and the losses]({page_name(store.scale)}_curves.png)"
        yield "A point is what was measured at that length; between points nothing was."
    if any((row.name, title) in values for row in GROUPS["lengths"] for title in titles):
        full = [ROWS["random"], ROWS["simclr"], ROWS["hapicl_s"]]
        yield numbers(values, titles, [*full, *GROUPS["lengths"]])
    yield from costs(store)
    missing = [*failed, *unmeasured(values, every)]
    if missing:
        yield "## Not run"
        yield "\n".join(f"- {line}" for line in missing)
    yield "## How it was measured"
    yield "\n".join(f"- {name}: {text}" for name, text in store.settings.items())
    if store.scale in HOLES_FILLED:
        yield masks_used(looped=any(row.name in known for row in GROUPS["loop"]))
    yield machines(store)
    yield (
        f"```\npython benchmarks/claims.py --scale {store.scale} --data .datasets --budget-minutes M\n```\n\n"
        "continues the table, whatever machine measured what is there (`--rows masks`, `loop`, `lengths`, "
        "`starts`, `trials` or `machines` for the other groups, `--costs` for the costs); `--render` makes "
        "this page from the numbers in the repository."
    )


def masks_used(*, looped: bool) -> str:
    """By which forms of the mask recipes the masks were made."""
    text = (
        "The masks of these runs were made before the recipes left holes open (2026-11-26): theirs are all "
        "filled."
    )
    if looped:
        text += (
            " Those of the loop are newer: holes are open, and the second ones are of a network with one "
            "convolution a stage where `masks refine` now has two (2026-11-27)."
        )
    return text


def deciding() -> str:
    """How a comparison is decided."""
    return (
        "Differences in per cent points, seed by seed (the two rows of a seed see the same images in the "
        "same order), with the 95 % interval of their mean; decided where it leaves out zero, with "
        f"{SEEDS_NEEDED} seeds or more. Many comparisons are made: one in twenty would be decided by chance."
    )


def statements(values: Values, titles: Sequence[str]) -> Iterator[str]:
    """What the table shows, in sentences: claims decided, rows above their random start."""
    lines = [line for claim in CLAIMS for line in lines_of(values, titles, claim)]
    if lines:
        count = counted(lines)
        yield (
            f"Of {len(lines)} comparisons that the papers' claims ask for, {count['higher']} are decided as "
            f"claimed, {count['lower']} against it and {count['undecided']} are undecided."
        )
    found = []
    for title in titles:
        rows = [
            row for row in GROUPS["methods"] if (row.name, title) in values and (row.start, title) in values
        ]
        pairs = [paired_difference(values[row.name, title], values[row.start, title]) for row in rows]
        verdicts = [pair.verdict for pair in pairs if pair is not None]
        if verdicts:
            found.append(f"{title} {verdicts.count('higher')} of {len(verdicts)}")
    if found:
        yield f"Methods decidedly above random weights of their backbone, by column: {'; '.join(found)}."


def partners(claim: Claim, group: Sequence[Row]) -> list[Row]:
    """The rows of other groups that a question compares with."""
    rows = [ROWS[name] for name in dict.fromkeys(name for pair in claim.pairs for name in pair)]
    return [ROWS["random"], *(row for row in rows if row not in group)]


def told(values: Values, titles: Sequence[str], claim: Claim) -> Iterator[str]:
    """A claim and its comparisons: a table of one line per pair, one column per protocol."""
    lines = lines_of(values, titles, claim)
    yield f"**{claim.text}**" if claim.text.endswith("?") else f"**{claim.text}.**"
    if not lines:
        yield "Not run."
        return
    shown = [title for title in titles if any(line.column == title for line in lines)]
    found = ["| row against row | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for row, rival in claim.pairs:
        by_column = {
            line.column: line.difference.text() for line in lines if (line.row, line.rival) == (row, rival)
        }
        if by_column:
            texts = (by_column.get(title, "-") for title in shown)
            found.append(f"| {row} against {rival} | " + " | ".join(texts) + " |")
    yield "\n".join(found)


def cell(values: Values, row: str, title: str) -> Cell | None:
    """Mean and deviation over seeds, None where nothing was run."""
    found = list(values.get((row, title), {}).values())
    if not found:
        return None
    return Cell(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def results(values: Values, titles: Sequence[str], rows: Sequence[Row]) -> ResultTable:
    """Rows as a result table, for its charts."""
    names = [row.name for row in rows if any((row.name, title) in values for title in titles)]
    cells = {(name, title): cell(values, name, title) for name in names for title in titles}
    return ResultTable(tuple(names), tuple(titles), {key: each for key, each in cells.items() if each})


def numbers(values: Values, titles: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of means, in the columns that any of these rows has."""
    titles = [title for title in titles if any((row.name, title) in values for row in rows)]
    table = results(values, titles, rows)
    lines = ["| row | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for row in table.rows:
        cells = (table.cells.get((row, title)) for title in titles)
        lines.append(
            f"| {row} | " + " | ".join("-" if each is None else each.text() for each in cells) + " |"
        )
    return "\n".join(lines)


def unmeasured(values: Values, titles: Sequence[str]) -> Iterator[str]:
    """Rows without any number, by group, columns without any, and what no row can have here."""
    for group, rows in GROUPS.items():
        names = [row.name for row in rows if not any((row.name, title) in values for title in titles)]
        if names:
            yield f"{group}: {', '.join(names)}"
    lacking = [title for title in titles if title not in measured(values, titles)]
    if lacking:
        yield f"columns that no row has yet: {', '.join(lacking)}"
    yield "instance mask AP: no data set with instance masks at hand; a supervised row: no weights at hand"


def costs(store: ClaimsStore) -> Iterator[str]:
    """Cost of training by method where it was measured, and of the masks."""
    found = [store.costs[row.name] for row in GROUPS["methods"] if row.name in store.costs]
    if found:
        yield "## Costs"
        yield (
            "Of training, a few steps with the machine to themselves, loading included; peak memory is the "
            "device's, or the process's where that is a CPU."
        )
        lines = [
            f"| {each['row']} | {1000 * each['seconds_per_image']:.1f} | {each['peak_memory_gib']:.2f} | "
            f"{each['device']}, torch threads: {each['threads']} |"
            for each in found
        ]
        yield "\n".join(["| row | ms per image | peak memory, GiB | on |", "|---|---:|---:|---|", *lines])
    if store.masks:
        seconds = 1000 * store.masks["seconds_per_image_one_core"]
        yield f"Masks: {seconds:.0f} ms an image on one core, once (recipe {store.masks['recipe']})."


def machines(store: ClaimsStore) -> str:
    """Where was trained and where measured."""
    trained = Counter(run.get("device", "not noted") for run in store.runs.values())
    measured = Counter(cell["machine"] for cell in store.cells.values())
    return (
        f"Runs by the machine that trained them: {_counted(trained)}; numbers by the machine that measured "
        f"them: {_counted(measured)}. Newest number: {max(c['date'] for c in store.cells.values())}."
    )


def _counted(names: Counter[str]) -> str:
    """Names with how many there are of each."""
    return ", ".join(f"{name} {count}" for name, count in names.most_common())


def curves(store: ClaimsStore, values: Values, titles: Sequence[str]) -> Figure:
    """What is reached after how many steps (length rows), and the losses of the first seed by method."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    wanted = [title for title in titles if "people" in title or "knn" in title][:2]
    for panel, title in zip(panels, wanted, strict=False):
        for name, colour in (("simclr", "tab:blue"), ("hapicl_s", "tab:orange")):
            steps = [
                (0.0, "random"),
                *((row.length, row.name) for row in GROUPS["lengths"] if row.method == name),
            ]
            known = [(share, cell(values, row, title)) for share, row in [*steps, (1.0, name)]]
            points = sorted((share, each) for share, each in known if each is not None)
            panel.errorbar(
                [share for share, _ in points],
                [100 * each.mean for _, each in points],
                [100 * (each.std or 0.0) for _, each in points],
                color=colour,
                label=name,
                capsize=2,
                marker="o",
                linestyle=":",
            )
        panel.set_title(title, fontsize=9)
        panel.set(xlabel="share of the steps; at 0 random weights")
        panel.legend(fontsize=8)
    for row in GROUPS["methods"][:6]:
        run = store.runs.get((row.name, 0))
        if run is not None:
            panels[2].plot(*zip(*run["loss"], strict=True), label=row.name, linewidth=1)
    panels[2].set_title("training loss of seed 0, each on its own scale", fontsize=9)
    panels[2].set(xlabel="step")
    if panels[2].lines:
        panels[2].legend(fontsize=7)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure
