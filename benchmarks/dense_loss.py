"""Peak memory and time of the dense cross-entropy: in row chunks against all logits at once.

    python benchmarks/dense_loss.py --out dense_loss.json            # N=64, 7 x 7 cells, K=65,536

Each form runs in a process of its own, so that one's peak is not the other's. On CUDA the peak is the
allocator's; on the CPU it is the growth of the resident set over the inputs.
"""

import argparse
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from hapicl.pretrain.losses.common import l2_normalize
from hapicl.pretrain.losses.dense import dense_info_nce, match_cells


def unchunked(query, key, features, others, queue, temperature):
    """The same loss as it is usually written: (N * P, K + 1) logits and cross-entropy."""
    match = match_cells(features, others)
    query, key = l2_normalize(query, dim=1), l2_normalize(key, dim=1)
    matched = key.gather(2, match[:, None, :].expand(-1, key.shape[1], -1))
    rows = query.transpose(1, 2).reshape(-1, query.shape[1])
    positive = (query * matched).sum(dim=1).reshape(-1, 1)
    logits = torch.cat([positive, rows @ queue.T], dim=1) / temperature
    target = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    return torch.nn.functional.cross_entropy(logits, target)


def chunked(query, key, features, others, queue, temperature):
    """The package's."""
    return dense_info_nce(query, key, features, others, queue, temperature=temperature)


def resident():
    """Largest resident set so far, bytes."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def measure(form, options):
    """Forward and backward of one form; prints JSON."""
    device = torch.device(options.device)
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, device=device)

    cells = options.grid**2
    dense, key = normal(2, options.images, options.dim, cells)
    features, others = normal(2, options.images, options.channels, cells)
    queue = l2_normalize(normal(options.queue, options.dim))
    dense.requires_grad_()
    before = resident()
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        loss = {"chunked": chunked, "unchunked": unchunked}[form](dense, key, features, others, queue, 0.2)
        dense.grad = None
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident() - before
    print(
        json.dumps(
            {
                "loss": loss.item(),
                "gradient_norm": dense.grad.norm().item(),
                "peak_bytes": peak,
                "median_seconds": statistics.median(seconds),
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--grid", type=int, default=7)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--form", choices=["chunked", "unchunked"], help="(used by the script itself)")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.form:
        measure(options.form, options)
        return
    result = {
        "settings": {key: value for key, value in vars(options).items() if key not in {"form", "out"}},
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name()
        if options.device != "cpu"
        else f"{torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        "logits_bytes": 4 * options.images * options.grid**2 * (options.queue + 1),
    }
    arguments = [value for value in sys.argv[1:] if value != "--out" and value != str(options.out)]
    for form in ("chunked", "unchunked"):
        command = [sys.executable, __file__, *arguments, "--form", form]
        result[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    result["peak_ratio"] = result["unchunked"]["peak_bytes"] / result["chunked"]["peak_bytes"]
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
