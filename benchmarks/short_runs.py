"""Run several methods alike and short, and put their curves and kNN beside random initialisation in one JSON.

    python benchmarks/short_runs.py --masks masks.h5 --knn-train DIR --knn-val DIR --work runs/short \
        --out benchmarks/results/short_runs.json simclr moco_v2 byol harl hapicl_s hapicl_m

Every method trains its small recipe on the same images for the same number of steps and samples. A run that
was cut off continues, one that is finished is only read again. A short run shows that a method learns what
its loss says; it says little about which method is better, and the JSON repeats that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hapicl import __version__
from hapicl.common.atomic_files import atomic_write
from hapicl.engine.distributed import World
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.diagnose.online_knn import OnlineKnn

MACHINE = ("masks", "images", "out", "resume", "knn_train", "knn_val")  # paths of one machine
CURVES = ("loss", "chance/", "similarity/", "pixel/", "embedding/")  # groups kept in full


def train(method: str, options: argparse.Namespace) -> Path:
    """Train one method, or go on with it; gives the run folder."""
    folder = options.work / method
    if not (folder / "backbone.safetensors").exists():
        command = [sys.executable, "-m", "hapicl", "pretrain", "--masks", str(options.masks)]
        command += ["--recipe", f"{method}_small", "--out", str(folder), "--seed", str(options.seed)]
        command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
        command += ["--image-size", str(options.image_size), "--device", options.device, "--workers", "1"]
        command += ["--knn-train", str(options.knn_train), "--knn-val", str(options.knn_val)]
        for change in (f"knn_every={options.steps}", "schedule.warmup_epochs=0.05", *options.set):
            command += ["--set", change]
        command += ["--resume", "auto"] if (folder / "last.pt").exists() else []
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def summarise(folder: Path) -> dict[str, Any]:
    """Settings, curves, last values and cost of a finished run."""
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    names = sorted({name for line in logged for name in line if name.startswith(CURVES)})
    rates = sorted(line["speed/samples_per_second"] for line in logged[1:])
    return {
        "arch": config["settings"]["arch"],
        "settings": {name: value for name, value in config["settings"].items() if name not in MACHINE},
        "knn_accuracy": next(line["knn/accuracy"] for line in reversed(lines) if "knn/accuracy" in line),
        "last": logged[-1],
        "curves": {
            "step": [line["step"] for line in logged],
            **{name: [line.get(name) for line in logged] for name in names},
        },
        "samples_per_second_median": rates[len(rates) // 2] if rates else None,
        "peak_memory_gib": max(line["memory/peak_gib"] for line in logged),
    }


def random_row(arch: str, options: argparse.Namespace) -> float:
    """KNN accuracy of an untrained backbone under the same protocol."""
    torch.manual_seed(options.seed)
    backbone = build_backbone(arch, image_size=options.image_size)
    settings = RunSettings(
        method="simclr",
        image_size=options.image_size,
        knn_train=str(options.knn_train),
        knn_val=str(options.knn_val),
        seed=options.seed,
    )
    knn = OnlineKnn.from_settings(settings, backbone, World(device=torch.device(options.device)))
    assert knn is not None
    return knn()["knn/accuracy"]


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--knn-train", type=Path, required=True, help="class folders")
    parser.add_argument("--knn-val", type=Path, required=True, help="class folders")
    parser.add_argument("--work", type=Path, required=True, help="run folders go here")
    parser.add_argument("--out", type=Path, required=True, help="JSON; rows of earlier calls are kept")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all methods; repeat"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    result: dict[str, Any] = {"rows": {}, "random": {}}
    if options.out.exists():
        result = json.loads(options.out.read_text())
    for method in options.methods:
        row = summarise(train(method, options))
        if row["arch"] not in result["random"]:
            result["random"][row["arch"]] = random_row(row["arch"], options)
        result["rows"][method] = row
        result |= {
            "what": "short runs: whether each method learns what its loss says, not which one is better",
            "command": " ".join(["python benchmarks/short_runs.py", *sys.argv[1:]]),
            "steps": options.steps,
            "batch_size": options.batch_size,
            "image_size": options.image_size,
            "knn": "online kNN, 20 neighbours, accuracy in [0, 1]",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.platform()}",
            "versions": {"hapicl": __version__, "torch": torch.__version__},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with atomic_write(options.out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{method}: kNN {row['knn_accuracy']:.4f}, random {result['random'][row['arch']]:.4f}")


if __name__ == "__main__":
    main()
