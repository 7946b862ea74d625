"""`hapicl doctor`: every stage of training timed on the user's images and machine, the slowest named.

The input path runs in worker processes beside the step, so the run goes as fast as the slower of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...common.system.devices import wait_for
from ...data.loading.batch import Batch
from ...data.loading.loader import Loader
from ...engine.distributed import processes
from ..components import Components, assemble, loop_settings
from ..config.settings import RunSettings
from .throughput import measure_device, measure_loader, measure_stages

STAGES = ("read", "decode", "decode as needed", "mask", "crop", "worker")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Rates in samples per second; `stages` on one core.

    Attributes:
        stages: name -> samples/s of each stage of a worker.
        workers: worker processes; `loader` is their rate together.
        transfer, augment, step: of the device, one after another; transfer is 0 on the CPU (there is none).
        bottleneck: what is slowest.
        advice: what to do about it, best first.
    """

    stages: dict[str, float]
    workers: int
    loader: float
    transfer: float
    augment: float
    step: float
    bottleneck: str
    advice: list[str]


def diagnose(
    settings: RunSettings,
    *,
    samples: int = 96,
    seconds: float = 4.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Measure a run with these settings without training it.

    Args:
        settings: as for `pretrain`.
        samples: images timed stage by stage.
        seconds: how long all workers run together, and then how long steps are repeated.
        progress: told what is being timed.

    Raises:
        UserError: for the mistakes that a real run would meet at its start.
    """
    with processes(settings.device) as world:
        components = assemble(settings, world)
        with components.loader as loader:
            loader.augment = False
            progress(f"timing the stages of {samples} images")
            stages = measure_stages(loader, samples=samples)
            progress(f"timing {loader.workers} workers together")
            together, raw = measure_loader(loader, seconds=seconds)
        transfer, augment, batch = measure_device(raw, world.device, inputs=loader.inputs)
        progress(f"timing steps of {len(batch)} samples on {world.device}")
        step = _step_seconds(components, batch, seconds)
        rates = {stage: _rate(stages.per_sample(stage)) for stage in STAGES}
        return _name_bottleneck(rates, components.loader, together, (transfer, augment, step), world.device)


def _step_seconds(components: Components, batch: Batch, seconds: float) -> float:
    """Seconds a sample of forward and backward.

    A first step warms up; one that takes longer than `seconds` is enough.
    """
    device, method = components.world.device, components.method.to(components.world.device)
    if components.settings.channels_last and device.type == "cuda":
        method = method.to(memory_format=torch.channels_last)
    bf16 = loop_settings(components).precision == "bf16"

    def repeat(seconds: float) -> float:
        """Seconds of one step, repeated for so many seconds, at least once."""
        started, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - started < seconds:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = method(batch).loss
            loss.backward()
            method.zero_grad(set_to_none=True)
            wait_for(device)
            done += 1
        return (time.perf_counter() - started) / done

    first = repeat(0)
    return (first if first > seconds else repeat(seconds)) / len(batch)


def _name_bottleneck(
    stages: dict[str, float],
    loader: Loader,
    together: float,
    device_side: tuple[float, float, float],
    device: torch.device,
) -> Diagnosis:
    """Name the bottleneck and what to do about it."""
    transfer, augment, step = device_side
    busy = transfer + augment + step
    if together > busy:
        components = {
            name: stages[name] for name in ("read", "decode as needed", "mask", "crop") if stages[name]
        }
        slowest = min(components, key=components.__getitem__)
        rate = _shown(_rate(together))
        bottleneck = f"the input path: {rate} samples/s from {loader.workers} workers, mostly {slowest}"
        advice = input_advice(slowest, stages, loader.workers, together / busy, device)
    elif step >= augment + transfer:
        bottleneck = f"the step: {_shown(_rate(busy))} samples/s on {device}"
        advice = [
            "the input path keeps up; a larger --batch-size, --compile or a smaller --arch change the step"
        ]
    else:
        bottleneck = f"augmentation and transfer: {_shown(_rate(augment + transfer))} samples/s on {device}"
        advice = ["train on a GPU, or at a smaller --image-size"]
    return Diagnosis(
        stages=stages,
        workers=loader.workers,
        loader=_rate(together),
        transfer=_rate(transfer),
        augment=_rate(augment),
        step=_rate(step),
        bottleneck=bottleneck,
        advice=advice,
    )


def input_advice(
    slowest: str, stages: dict[str, float], workers: int, short: float, device: torch.device
) -> list[str]:
    """Say what to do when the workers are too slow by the factor `short`."""
    advice = []
    if slowest == "read":
        advice.append("reading is slowest: `hapicl data pack --images DIR --out images.h5` makes one file")
    if slowest == "decode as needed":
        advice.append(
            "decoding is slowest: `hapicl data pack --images DIR --out images.h5 --short-side 320` makes "
            "smaller JPEGs to decode, with the same crops; decoding at a reduced size is on already, where "
            "every crop allows it"
        )
    wanted = max(1, round(workers * short + 0.5))
    advice.append(f"--workers {wanted} would keep up if this machine has as many idle cores")
    if device.type == "cpu":
        advice.append("on the CPU, workers and the step share the cores: more workers slow the step")
    return advice


def as_text(diagnosis: Diagnosis) -> str:
    """One screen of text."""
    notes = {
        "read": "bytes of the file",
        "decode": "in full",
        "decode as needed": "reduced where every crop allows it",
        "mask": "read, unpack, redraw, occupancy",
        "crop": "cut and resize all views",
        "worker": "all of the above, once",
    }
    lines = ["a worker, on one core                 samples/s"]
    for name, note in notes.items():
        lines.append(f"  {name:<17} {_shown(diagnosis.stages[name]):>27}   {note}")
    lines.append("the run")
    rows = [
        ("loader", diagnosis.loader, f"{diagnosis.workers} workers together"),
        ("transfer", diagnosis.transfer, "copy of the uint8 views to the device"),
        ("augmentation", diagnosis.augment, "photometric, on the device"),
        ("step", diagnosis.step, "forward and backward"),
    ]
    for name, rate, note in rows:
        lines.append(f"  {name:<17} {_shown(rate):>27}   {note}")
    lines.append(f"the bottleneck is {diagnosis.bottleneck}")
    lines += [f"  - {line}" for line in diagnosis.advice]
    return "\n".join(lines)


def _shown(rate: float) -> str:
    """A rate for people, a small one with its decimals; a dash where there is none."""
    if not rate:
        return "-"
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _rate(seconds: float) -> float:
    """Samples a second; 0 for a stage that is not there."""
    return 1 / seconds if seconds > 0 else 0.0
