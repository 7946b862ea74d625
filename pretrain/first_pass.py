"""The pass over all images before the first step, for methods that keep something of every image.

A memory bank of random rows is far from the embeddings of an untrained network, which are nearly alike: the
contrast drives them together before it can tell them apart. So the bank starts with embeddings.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..data.loading.batch import Batch
from ..engine.batchnorm import buffers_kept
from .components import Components, build_loader, loop_settings

EPOCH = 2**32 - 1  # whose crops no epoch of training draws
TELL_SECONDS = 60  # between two lines of progress


def run_first_pass(
    components: Components, *, prepare: Callable[[Batch], Batch], info: Callable[[str], None]
) -> None:
    """Show the method every image once, without gradient, if it asks for that and has not seen them.

    The network is in train mode, since the statistics of an untrained network's BatchNorms mean nothing, and
    its running statistics stay as they were. The last batch is filled up with the first images.

    Args:
        components: the run; its method takes in the batches.
        prepare: applied to every batch first.
        info: takes a sentence for the user.
    """
    method = components.method
    needs = method.first_pass_needs(components.needs)
    if needs is None:
        return
    precision = loop_settings(components).precision
    device = components.world.device
    with build_loader(components.settings, needs, components.world, every_image=True) as loader:
        info(f"first pass: every one of the {len(loader.paths)} images once, without gradient")
        started = told = time.monotonic()
        with torch.no_grad(), buffers_kept(components.backbone):
            for number, batch in enumerate(loader.batches(EPOCH), start=1):
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    method.first_pass(prepare(batch))
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    info(f"first pass: {number / loader.steps_per_epoch:.0%} of the images")
        method.end_first_pass()
        info(f"first pass: done in {time.monotonic() - started:.1f} seconds")
