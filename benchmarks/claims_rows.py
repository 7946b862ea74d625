"""Rows of the claims table: what is trained, by which settings, on which masks; `claims.py` runs them.

A row is trained by the recipe `METHOD_small` at the scale's size and length; what else differs from it is in
its `changes` (as `--set` takes them), its masks and its length. Rows of random weights train nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

VIT = ("moco_v3", "mae", "siameseim", "hapicl_vit")
USES_MASKS = ("hapicl_s", "hapicl_m", "harl", "hapicl", "hapicl_vit")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    `weights` is what `hapicl evaluate` takes where nothing is trained; `vit` says that the backbone is a
    Vision Transformer, by default it is a ResNet (the scale says which). `masks` names one of the mask
    files given by `--masks NAME=FILE`. `length` is a share of the scale's steps. `after` names the row
    whose backbone of the same seed this one starts from. `fine_tuned` rows are measured by the columns
    that fine-tune as well. `device` is where it is trained, by default where the call says.
    """

    name: str
    method: str = ""
    weights: str = ""
    vit: bool = False
    changes: tuple[str, ...] = ()
    masks: str = "default"
    length: float = 1.0
    after: str = ""
    fine_tuned: bool = True
    device: str = ""

    @property
    def start(self) -> str:
        """The row of random weights that this one is held against; empty for those rows themselves."""
        if not self.method:
            return ""
        return "random_vit" if self.vit else "random"


def trained(method: str, name: str = "", **more: object) -> Row:
    """A row of a method, by default as its recipe has it and under its own name."""
    return Row(name=name or method, method=method, vit=method in VIT, **more)  # type: ignore[arg-type]


# trained rows are held against `random`, whose BatchNorm statistics come from the training images; a ViT has
# no BatchNorm, so its one row is both forms. Fine-tuning replaces the statistics of both forms alike
RANDOM = (
    Row(name="random", weights="random"),
    Row(name="random-untouched", weights="random-untouched", fine_tuned=False),
    Row(name="random_vit", weights="random", vit=True),
)
# most telling first. `hapicl_m_redraws_only` is HAPiCL-M without its pixel term: MoCo v2, symmetric, on crops
# redrawn by foreground, so it shows what the redraws alone do
METHOD_ROWS = (
    trained("simclr"),
    trained("hapicl_s"),
    trained("moco_v2"),
    trained("hapicl_m"),
    trained("hapicl_m", "hapicl_m_redraws_only", changes=("config.pixel_weight=0",)),
    trained("densecl"),
    *(trained(name) for name in ("byol", "harl", "pirl", "npid", "jigsaw", "rotation", "hapicl", *VIT)),
)
# does mask quality carry over to dense transfer? `rectangles` has no content: one random rectangle an image,
# of the coverage that the default mask has
MASK_ROWS = tuple(
    trained(method, f"{method}[{masks}]", masks=masks)
    for masks, methods in (
        ("rectangles", ("hapicl_s",)),
        ("felzenszwalb", ("hapicl_s",)),
        ("fast", ("hapicl_s",)),
        ("refined", USES_MASKS),
    )
    for method in methods
)
# the loop of both stages, once around: `first` masks are of the default recipe, `loop` masks of a network
# whose encoder is the backbone of `hapicl_s[first]`, seed 0
LOOP_ROWS = tuple(
    trained("hapicl_s", f"hapicl_s[{masks}]", masks=masks, fine_tuned=False) for masks in ("first", "loop")
)
# how long must a run be before a method leaves its random start?
LENGTH_ROWS = tuple(
    trained(method, f"{method}@{share}", length=length, fine_tuned=False)
    for share, length in (("1/8", 0.125), ("1/4", 0.25), ("1/2", 0.5))
    for method in ("simclr", "hapicl_s")
)
# the same number of steps in all: half by SimCLR, half by HAPiCL-S from there, which `continued` does at a
# tenth of the rate, as the recipes `*_continue` have it
START_ROWS = (
    trained("hapicl_s", "hapicl_s_after_simclr", length=0.5, after="simclr@1/2"),
    trained("hapicl_s", "hapicl_s_after_simclr@1/4", length=0.125, after="simclr@1/8", fine_tuned=False),
    trained(
        "hapicl_s",
        "hapicl_s_continued_after_simclr@1/4",
        length=0.125,
        after="simclr@1/8",
        changes=("optimizer.base_lr=0.012",),
        fine_tuned=False,
    ),
)
# the small recipes as they were before 2026-11-26 beside what they are now; the temperature by itself as well
_HEADS = "config.hidden=512"
_DECAY = "optimizer.weight_decay=1e-4"
_BLUR = (
    "config.photometric.blur_sigma=[0.35, 7.0]"  # of a view of 224: .1 to 2 pixels at 64, not scaled by size
)
_WARM = "config.temperature=0.2"
TRIAL_ROWS = (
    trained("simclr", "simclr_before", changes=(_DECAY, _BLUR), fine_tuned=False),
    trained("hapicl_s", "hapicl_s_before", changes=(_DECAY, _BLUR), fine_tuned=False),
    trained("moco_v2", "moco_v2_before", changes=(_DECAY, _BLUR, _HEADS, _WARM), fine_tuned=False),
    trained("hapicl_m", "hapicl_m_before", changes=(_DECAY, _BLUR, _HEADS, _WARM), fine_tuned=False),
    trained("densecl", "densecl_before", changes=(_DECAY, _BLUR, _HEADS), fine_tuned=False),
    trained("pirl", "pirl_before", changes=(_DECAY, "config.crop_scale=[0.08, 1.0]"), fine_tuned=False),
    trained("moco_v2", "moco_v2_temperature_0.2", changes=(_WARM,), fine_tuned=False),
    trained("hapicl_m", "hapicl_m_temperature_0.2", changes=(_WARM,), fine_tuned=False),
)
# the same runs once more on a CPU: how much do numbers move with the machine that trains?
MACHINE_ROWS = tuple(
    trained(method, f"{method}_on_cpu", device="cpu", fine_tuned=False)
    for method in ("simclr", "hapicl_s", "moco_v2", "hapicl_m", "densecl", "pirl")
)
GROUPS = {
    "methods": METHOD_ROWS,
    "masks": MASK_ROWS,
    "loop": LOOP_ROWS,
    "lengths": LENGTH_ROWS,
    "starts": START_ROWS,
    "trials": TRIAL_ROWS,
    "machines": MACHINE_ROWS,
}
ROWS = {row.name: row for rows in (RANDOM, *GROUPS.values()) for row in rows}
