"""MLflow: a run of the experiment that `MLFLOW_EXPERIMENT_NAME` names, at `MLFLOW_TRACKING_URI`.

Only the tracking client is used (the package mlflow-skinny has it), never MLflow's active run, which belongs
to whoever calls us.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ...common.errors import UserError
from .dashboards import RunFacts

# MLflow's store of files keeps metrics as a tree, where `loss` cannot lie beside `loss/pixel`
_NAMES = {"loss": "loss/total"}
EXPERIMENT = "hapicl"  # where MLFLOW_EXPERIMENT_NAME names none
_PARAMS_AT_ONCE = 100  # MLflow's limits for one call and one value
_LONGEST_VALUE = 500


class MlflowRun:
    """One run; a resumed one goes on in the run of before, whose id lies in the run folder.

    Raises:
        UserError: if what is installed cannot talk to the place that `MLFLOW_TRACKING_URI` names.
    """

    def __init__(self, facts: RunFacts) -> None:
        self._client = _client()
        known = facts.remembered("mlflow")
        if known:
            self._run = known["run_id"]
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=facts.folder.name).info.run_id
        facts.remember("mlflow", {"run_id": self._run})
        self._log_settings(facts.config)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log one batch of metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_NAMES.get(name, name), float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """Say that the session is over."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")

    def _log_settings(self, config: Mapping[str, Any]) -> None:
        """The settings as parameters, which MLflow never changes: told once, when the run is begun."""
        from mlflow.entities import Param

        params = [Param(name, text[:_LONGEST_VALUE]) for name, text in _flat(config) if text]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _PARAMS_AT_ONCE])


def _client() -> Any:
    """MLflow's client; what it refuses before it has asked any server is a matter of settings."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient()
    except MlflowException as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise UserError(
            f"--logger mlflow: {reason}; set MLFLOW_TRACKING_URI to your server (http://...), or "
            "`pip install mlflow` for a database on this machine (sqlite:///mlflow.db)"
        ) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
