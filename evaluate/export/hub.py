"""`hapicl export --to hub`: a folder in timm's form with a model card, as model hubs have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.config import build
from ...common.errors import UserError
from ...engine.loggers.run_files import CONFIG, read_config
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import restore_lines
from ...models.backbones.timm_maps import TimmBackbone
from ...models.weights import State, describe_weights
from ...models.write_weights import write_safetensors
from ..classification.vectors import FeatureProtocol, evaluation_vectors
from .card import Card, results_beside, results_given, write_card
from .checks import check_hub
from .export import Exported, about_weights, trained_backbone
from .timm_form import hub_config, timm_arguments, timm_name, trained_size
from .usage import hub_usage

WEIGHTS, CARD = "model.safetensors", "README.md"  # as timm and the hub look for them, beside config.json


def export_hub(
    spec: str,
    out: Path,
    *,
    arch: str | None = None,
    name: str | None = None,
    license: str | None = None,
    results: Sequence[Path] = (),
) -> tuple[Exported, str]:
    """Write a folder that `timm.create_model("local-dir:...")` loads, and check that it does.

    Args:
        spec: weights as `load_backbone` takes them, not random.
        out: the folder, made here; it may be there if it is empty.
        arch: the backbone's name where the weights do not say.
        name: of the repository that it is for, such as `me/backbone`; the card's lines then load it there.
        license: of the weights, as the hub names it; None: the card says that none is stated.
        results: files of `hapicl evaluate` on these weights; those that lie beside the run are found.

    Returns:
        What was written, and the line that says how much of `spec` matched.

    Raises:
        UserError: for a folder that is not empty or cannot be written, a network that timm has not, results
            of other weights, or weights that do not match.
    """
    refuse_unwritable(out / CONFIG)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} holds files already; choose another --out")
    backbone, info = trained_backbone(spec, arch)
    if not timm.is_model(timm_name(backbone, info.arch)):
        raise UserError(f"timm has no network {info.arch}; use --to safetensors")
    size = trained_size(backbone, describe_weights(spec))
    vector = evaluation_vectors(build(FeatureProtocol, {}), info, backbone)[0]
    folder = _folder_of(spec)
    measured = results_given(results, info) if results else results_beside(folder, info.sha256)
    state, fresh = _complete(backbone)
    card = Card(
        name=name or out.name,
        info=info,
        image_size=size,
        inputs=backbone.inputs,
        config=_run_config(folder),
        results=measured,
        snippets=hub_usage(backbone, f"hf-hub:{name}" if name else "local-dir:FOLDER"),
        license=license,
        notes=_notes(backbone, fresh),
    )
    config = hub_config(backbone, info.arch, vector=vector, image_size=size)
    try:
        write_safetensors(state, out / WEIGHTS, {**about_weights(backbone, info), "image_size": str(size)})
        _write_text(out / CARD, write_card(card))
        _write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")  # last: with it the folder is whole
        check_hub(backbone, out, info.arch, vector=vector, image_size=size)
    except BaseException:
        for file in (CONFIG, CARD, WEIGHTS):
            (out / file).unlink(missing_ok=True)
        raise
    return Exported(out, len(state), hub_usage(backbone, f"local-dir:{out}")), info.line()


def _folder_of(spec: str) -> Path | None:
    """The folder in which the weights lie; None for those of a library."""
    path = Path(spec.removeprefix("supervised:"))
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent


def _run_config(folder: Path | None) -> dict[str, Any] | None:
    """The config.json of the run whose folder it is; None where it is no run's."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    if '"settings"' not in (folder / CONFIG).read_text(encoding="utf-8"):  # such as timm's own
        return None
    return read_config(folder)


def _complete(backbone: Backbone) -> tuple[State, list[str]]:
    """All tensors that timm's network has, and the names of those that no training has touched.

    Of a network of timm's only what leads to its last map is trained; timm loads a folder whole or not at
    all, so what follows that map is there as timm makes it.
    """
    state = dict(backbone.export_state())
    if not isinstance(backbone, TimmBackbone):
        return state, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model(backbone.name, pretrained=False, **timm_arguments(backbone))
    fresh = [name for name in model.state_dict() if name not in state]
    return {**model.state_dict(), **state}, fresh


def _notes(backbone: Backbone, fresh: Sequence[str]) -> list[str]:
    """What a reader must know of the network's form."""
    notes = []
    if restore_lines(backbone.stem):
        notes.append(
            f"**Stem:** trained with `{backbone.stem}`, of a smaller stride than any argument of timm's "
            "network gives. The weights fit timm's, and show it every object at another size; the lines "
            "below give the strides of training."
        )
    if fresh:
        notes.append(
            f"**Not trained:** {', '.join(f'`{name}`' for name in fresh[:4])}"
            f"{f' and {len(fresh) - 4} more' if len(fresh) > 4 else ''}, which follow the last map, are as "
            "timm makes them. Use the maps (`features_only=True`)."
        )
    return notes


def _write_text(path: Path, text: str) -> None:
    """Write a text file, whole."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
