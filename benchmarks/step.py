"""The training step: overhead over forward and backward, each lever by itself, share of the bandwidth floor.

    python benchmarks/step.py --out step.json                       # tiny, any machine
    python benchmarks/step.py --full --out step.json                # 224 px ResNet-50, needs a GPU
    python benchmarks/step.py --full --masks masks.h5 --out ...     # with real input too

Rivals alternate in blocks within one process, so that what else the machine does falls on both; medians.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import torch

from hapicl.data.geometry import ViewGeometry
from hapicl.data.loading.batch import Batch
from hapicl.data.loading.loader import Loader, LoaderOptions
from hapicl.engine.distributed import World, choose_device
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.losses import info_nce
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import method_class

# samples/s at 4.3 TB/s (one H200) if BatchNorm and ReLU traffic were all: two 224 px views, ResNet-50
BANDWIDTH_FLOOR = {"simclr": 6033, "moco_v2": 8965, "hapicl_m": 4483}
BASE = {"channels_last": True, "fused": True, "compile": False}


class Repeat:
    """A source that gives one batch for ever, so that only the step is measured."""

    steps_per_epoch = 10**9
    wait_seconds = 0.0

    def __init__(self, batch):
        self.batch = batch

    def batches(self, epoch, first_step=0):
        """Give it again and again."""
        while True:
            yield self.batch


class Setup:
    """A method with its optimiser and a made-up batch, under one choice of levers."""

    def __init__(self, name, options, *, precision, channels_last, fused, compile, synchronise=False):
        self.device, self.precision = options.device, precision
        kind = method_class(name)
        config = kind.Config()
        torch.manual_seed(0)
        backbone = build_backbone(options.arch, image_size=options.image_size)
        self.needs = kind.needs(config, backbone, image_size=options.image_size)
        context = Context(
            data_set_size=100_000, batch_size=options.batch_size, total_steps=1000, steps_per_epoch=100
        )
        self.method = kind(config, context, backbone).to(self.device)
        self.batch = made_up_batch(self.needs, options.batch_size, self.device)
        if channels_last:
            self.method.to(memory_format=torch.channels_last)
            views = (view.contiguous(memory_format=torch.channels_last) for view in self.batch.views)
            self.batch.views = tuple(views)
        if compile:
            for module in self.method.modules():
                if isinstance(module, Backbone):
                    module.compile()
        if synchronise:
            self.method.register_forward_hook(lambda module, given, output: output.loss.item() and None)
        settings = OptimizerSettings(fused=fused)
        self.optimizer = build_optimizer(
            self.method, settings, batch_size=options.batch_size, device=self.device
        )

    def bare(self, steps):
        """Forward and backward, nothing else."""
        for _ in range(steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.method(self.batch).loss
            loss.backward()
            self.method.zero_grad(set_to_none=True)

    def trained(self, steps, source=None):
        """The trainer's loop: guard, update, EMA, meter."""
        settings = LoopSettings(total_steps=10**6, stop_after=steps, precision=self.precision, log_every=10)
        fit(
            self.method,
            source or Repeat(self.batch),
            self.optimizer,
            settings,
            world=World(device=self.device),
            hooks=Hooks(after_step=self.method.after_step),
        )


def made_up_batch(needs, size, device):
    """Noise in the shape of the loader's batches."""
    zeros = torch.zeros(size, dtype=torch.int32)
    flips = torch.zeros(size, dtype=torch.bool)
    geometry = ViewGeometry(zeros, zeros, zeros + 200, zeros + 200, flips, flips)
    grids = (
        ()
        if needs.grid is None
        else tuple((torch.rand(size, needs.grid, needs.grid) > 0.5).float() for _ in needs.views)
    )
    return Batch(
        index=torch.arange(size),
        image_size=torch.full((size, 2), 256),
        views=tuple(torch.randn(size, 3, policy.size, policy.size) for policy in needs.views),
        geometry=(geometry,) * len(needs.views),
        photometric=(),
        occupancy=grids,
        has_mask=None if needs.grid is None else torch.ones(size, dtype=torch.bool),
        fallback=torch.zeros(size, len(needs.views), dtype=torch.bool),
    ).to(device)


def seconds(work, steps, device):
    """Wall time of a step, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / steps


def alternate(rivals, options):
    """Time rivals in turn, block by block; gives the list of seconds a step by name."""
    times = {name: [] for name in rivals}
    for work in rivals.values():
        work(options.warm_up)
    for _ in range(options.blocks):
        for name, work in rivals.items():
            times[name].append(seconds(work, options.steps, options.device))
    return times


def measure_overhead(name, options):
    """Ratio of the trainer's step to bare forward and backward."""
    setup = Setup(name, options, precision=options.precision, **BASE)
    spent = {"bare": [], "trainer": []}

    def counted(kind, work):
        def run(steps):
            started = time.process_time()
            work(steps)
            spent[kind].append((time.process_time() - started) / steps)

        return run

    rivals = {"bare": counted("bare", setup.bare), "trainer": counted("trainer", setup.trained)}
    times = alternate(rivals, options)
    ratios = [one / other for one, other in zip(times["trainer"], times["bare"], strict=True)]
    # without the warm-up; on a shared machine processor time is steadier than wall time
    busy = [one / other for one, other in zip(spent["trainer"][1:], spent["bare"][1:], strict=True)]
    return {
        "overhead_in_processor_time": statistics.median(busy) - 1,
        "bare_ms": 1000 * statistics.median(times["bare"]),
        "trainer_ms": 1000 * statistics.median(times["trainer"]),
        "overhead": statistics.median(ratios) - 1,
        "overhead_of_each_block": [ratio - 1 for ratio in ratios],
    }


def measure_levers(name, options):
    """Samples/s with one lever changed at a time, against the trainer's own choice."""
    found = {
        "two forwards instead of one": measure_two_forwards(options),
        "whole logits instead of chunks": measure_whole_logits(options),
    }
    changes = {"contiguous instead of channels_last": {"channels_last": False}}
    changes |= {"the loss read at every step": {"synchronise": True}}
    changes |= {"foreach instead of fused update": {"fused": False}, "torch.compile": {"compile": True}}
    precisions = {"bf16": "fp32", "fp32": "bf16"}
    other = precisions[options.precision]
    for label, change in [
        *changes.items(),
        (f"{other} instead of {options.precision}", {"precision": other}),
    ]:
        ours = Setup(name, options, **({"precision": options.precision} | BASE))
        theirs = Setup(name, options, **({"precision": options.precision} | BASE | change))
        times = alternate({"base": ours.trained, "changed": theirs.trained}, options)
        found[label] = compared(times, options)
        print(label, json.dumps(found[label]), flush=True)
    return found


def compared(times, options):
    """What a lever does: the changed form's speed over the base's, block by block."""
    ratios = [base / changed for base, changed in zip(times["base"], times["changed"], strict=True)]
    return {
        "speed_against_base": statistics.median(ratios),
        "samples_per_second": options.batch_size / statistics.median(times["changed"]),
    }


def measure_two_forwards(options):
    """A backbone's forward and backward of two views at once, and one after the other."""
    size = options.image_size
    backbone = build_backbone(options.arch, image_size=size).to(options.device)
    backbone = backbone.to(memory_format=torch.channels_last)
    shape = (options.batch_size, 3, size, size)
    views = [torch.randn(shape, device=options.device).contiguous(memory_format=torch.channels_last)] * 2

    def pass_through(parts):
        with torch.autocast(options.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = sum(backbone(part)[backbone.last].float().square().mean() for part in parts)
        loss.backward()

    def one(steps):
        for _ in range(steps):
            pass_through([torch.cat(views).contiguous(memory_format=torch.channels_last)])

    def two(steps):
        for _ in range(steps):
            pass_through(views)

    return compared(alternate({"base": one, "changed": two}, options), options)


def measure_whole_logits(options, *, negatives=65_536, dim=128):
    """MoCo's loss against its queue with all logits at once, and in our chunks of an eighth."""
    rows = options.batch_size
    shapes = ((rows, dim), (rows, dim), (negatives, dim))
    query, key, queue = (torch.randn(shape, device=options.device) for shape in shapes)
    query.requires_grad_()

    def with_chunks_of(logits):
        def run(steps):
            for _ in range(steps):
                info_nce(query, key, queue, temperature=0.2, chunk_logits=logits).backward()

        return run

    rivals = {"base": with_chunks_of(rows * negatives // 8), "changed": with_chunks_of(rows * negatives)}
    return compared(alternate(rivals, options), options)


def measure_throughput(name, options):
    """Samples/s with made-up and, given --masks, real input; peak memory; share of the floor on a GPU."""
    setup = Setup(name, options, precision=options.precision, **(BASE | {"compile": options.compile}))
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(options.device)
    times = alternate({"made up": setup.trained}, options)["made up"]
    found = {"samples_per_second": options.batch_size / statistics.median(times)}
    if options.device.type == "cuda":
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated(options.device) / 2**30
    if options.full and name in BANDWIDTH_FLOOR:
        found["share_of_bandwidth_floor"] = found["samples_per_second"] / BANDWIDTH_FLOOR[name]
    if options.masks:
        found["real_input"] = measure_real_input(setup, options)
    return found


def measure_real_input(setup, options):
    """Samples/s and the share of time spent waiting for the loader."""
    with Loader(
        None,
        options.masks,
        setup.needs,
        LoaderOptions(batch_size=options.batch_size, seed=0, workers=options.workers),
        device=options.device,
    ) as loader:
        setup.trained(options.warm_up, loader)
        waited = []

        class Watched(Repeat):
            def batches(self, epoch, first_step=0):
                for batch in loader.batches(epoch, first_step):
                    waited.append(loader.wait_seconds)
                    yield batch

        watched = Watched(None)
        watched.steps_per_epoch = loader.steps_per_epoch
        step = seconds(lambda steps: setup.trained(steps, watched), options.steps, options.device)
        return {
            "samples_per_second": options.batch_size / step,
            "data_wait_fraction": sum(waited) / (step * options.steps),
            "workers": loader.workers,
        }


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--full", action="store_true", help="224 px ResNet-50, bf16, batch 256: needs a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", nargs="+", default=["simclr", "moco_v2", "hapicl_m"])
    parser.add_argument("--only", choices=["overhead", "levers", "throughput"])
    parser.add_argument("--masks", help="mask file, for real input")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--compile", action="store_true", help="compile in the throughput rows")
    parser.add_argument("--steps", type=int, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    options.device = choose_device(options.device)
    options.precision = "bf16" if options.device.type == "cuda" else "fp32"
    options.arch, options.image_size = ("resnet50", 224) if options.full else ("resnet18", 64)
    options.batch_size = options.batch_size or (256 if options.full else 16)
    options.steps = options.steps or (30 if options.device.type == "cuda" else 3)
    options.warm_up = 10 if options.device.type == "cuda" else 2
    return options


def main():
    """Measure and write."""
    options = parse()
    if options.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        name = torch.cuda.get_device_name(options.device)
    else:
        name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    result = {
        "what": "training step",
        "device": name,
        "machine": platform.platform(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "arch": options.arch,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "steps_of_a_block": options.steps,
        "blocks": options.blocks,
    }
    if options.only in {None, "overhead"}:
        result["overhead"] = {method: measure_overhead(method, options) for method in options.methods}
    if options.only in {None, "levers"}:
        result["levers"] = {"method": options.methods[-1], **measure_levers(options.methods[-1], options)}
    if options.only in {None, "throughput"}:
        result["throughput"] = {method: measure_throughput(method, options) for method in options.methods}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
