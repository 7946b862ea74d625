"""Weights & Biases: a run of the project that `WANDB_PROJECT` names, else of `hapicl`.

All of wandb's own variables count (`WANDB_MODE=offline`, `WANDB_ENTITY`, ...). Its files lie in the run
folder unless `WANDB_DIR` says otherwise; `wandb sync` sends what was written offline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ...common.errors import UserError
from .dashboards import RunFacts

PROJECT = "hapicl"
_NO_SERVER = frozenset(("offline", "dryrun", "disabled"))  # modes that need no login


class WandbRun:
    """One run; a resumed one goes on in the run of before, whose id lies in the run folder.

    Raises:
        UserError: if nobody is logged in; wandb would ask on the terminal, where nobody may sit.
    """

    def __init__(self, facts: RunFacts) -> None:
        import wandb

        if wandb.setup().settings.mode not in _NO_SERVER and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "--logger wandb: nobody is logged in at Weights & Biases; run `wandb login`, set "
                "WANDB_API_KEY, or set WANDB_MODE=offline and send the run later with `wandb sync`"
            )
        known = facts.remembered("wandb")
        place: dict[str, Any] = {"id": known["id"], "resume": "allow"} if known else {}
        if not known:
            place["name"] = facts.folder.name
        if "WANDB_PROJECT" not in os.environ or known:
            place["project"] = known.get("project", PROJECT)
        if "WANDB_DIR" not in os.environ:
            place["dir"] = str(facts.folder)
        self._run: Any = wandb.init(
            **place,
            config=dict(facts.config),
            allow_val_change=True,  # a resumed run may be longer, on another device ...
            # the terminal is the progress bar's, and train.log has what was said
            settings=wandb.Settings(console="off", silent=not facts.show),
        )
        facts.remember("wandb", {"id": self._run.id, "project": self._run.project})

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Send the rest and say how it ended."""
        self._run.finish(exit_code=int(failed))
