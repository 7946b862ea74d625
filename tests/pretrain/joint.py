"""Runs a function of this file in two processes under gloo, and made-up batches for any method.

As a script: `python joint.py NAME FOLDER` with torchrun's environment variables; writes
FOLDER/NAME.RANK.pt.
"""

import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hapicl.data.batch import Batch
from hapicl.data.geometry import ViewGeometry
from hapicl.data.randomness import counter_generator
from hapicl.pretrain.backbones import Backbone
from hapicl.pretrain.engine import batchnorm, distributed
from hapicl.pretrain.engine.checkpoint import load_checkpoint
from hapicl.pretrain.engine.guard import NonFiniteLossError
from hapicl.pretrain.engine.loop import LoopSettings, fit
from hapicl.pretrain.engine.optimizers import OptimizerSettings, build_optimizer
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import METHODS, method_class
from hapicl.pretrain.vit import ViTBackbone

sys.path.insert(0, str(pathlib.Path(__file__).parent / "engine"))
from toy import ToyModule, ToySource

BATCH, SIZE = 16, 64
CPU = torch.device("cpu")
VIT_METHODS = {"siameseim", "mae", "moco_v3", "hapicl_vit"}


class TinyBackbone(Backbone):
    """Two maps of few channels with BatchNorm, in place of a ResNet."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 8, 1), nn.BatchNorm2d(6), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh())
        self.channels, self.last, self.stride = {"layer3": 6, "layer4": 8}, "layer4", 16
        self.stem = "tiny"

    def forward(self, images):
        first = self.first(images)
        return {"layer3": first, "layer4": self.second(first)}

    def export_state(self):
        return self.state_dict()


def tiny_vit():
    """Two blocks of width 48 on 8 x 8 patches."""
    trunk = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, global_pool=""
    )
    return ViTBackbone(trunk)


def build(name, **config):
    """A method in float64 with the same weights everywhere, and its needs."""
    name = name.split()[0]  # what follows names a form
    kind = method_class(name)
    settings = kind.Config(**config)
    torch.manual_seed(5)
    backbone = tiny_vit() if name in VIT_METHODS else TinyBackbone()
    context = Context(data_set_size=64, batch_size=BATCH, total_steps=10, steps_per_epoch=4, seed=3)
    method = kind(settings, context, backbone).double()
    method = batchnorm.synchronise_batch_norm(method, CPU)
    method.before_training([f"{number}.jpg" for number in range(64)])
    return method, kind.needs(settings, image_size=SIZE, grid=SIZE // backbone.stride)


def made_up_batch(needs, step=0):
    """A global batch as the loader would give it, float64."""
    draw = counter_generator(1, 0, step, 0, "test")
    number = lambda *shape: torch.from_numpy(draw.standard_normal(shape))  # noqa: E731
    whole = lambda high, *shape: torch.from_numpy(draw.integers(0, high, shape))  # noqa: E731
    geometry = tuple(
        ViewGeometry(
            whole(20, BATCH),
            whole(20, BATCH),
            40 + whole(40, BATCH),
            40 + whole(40, BATCH),
            whole(2, BATCH).bool(),
            torch.zeros(BATCH, dtype=torch.bool),
        )
        for _ in needs.views
    )
    cells = needs.jigsaw.grid**2 if needs.jigsaw else 9
    patch = needs.jigsaw.patch if needs.jigsaw else 8
    optional = {"patches": number(BATCH, cells, 3, patch, patch)} if needs.jigsaw else {}
    if needs.grid is not None:
        # one image without foreground in its first view, one without background
        occupancy = [whole(2, BATCH, needs.grid, needs.grid).double() for _ in needs.views]
        occupancy[0][1], occupancy[0][12] = 0.0, 1.0
        optional |= {"occupancy": tuple(occupancy), "has_mask": torch.arange(BATCH) != 3}
        optional["fallback"] = whole(2, BATCH, len(needs.views)).bool()
    return Batch(
        index=torch.from_numpy(draw.permutation(64)[:BATCH]),
        image_size=torch.full((BATCH, 2), 100),
        views=tuple(number(BATCH, 3, policy.size, policy.size) for policy in needs.views),
        geometry=geometry,
        photometric=(),
        permutation=torch.stack([torch.from_numpy(draw.permutation(cells)) for _ in range(BATCH)]),
        rotation=whole(4, BATCH),
        epoch=0,
        step=step,
        **optional,
    )


def slice_of(batch, rank, size):
    """One process's rows."""
    return batch.map_tensors(lambda value: value.tensor_split(size)[rank])


def two_steps(name, rank=0, size=1, **config):
    """Two SGD steps; returns losses, gradients of the last, and all buffers and parameters after it."""
    method, needs = build(name, **config)
    trained = method if size == 1 else distributed.DataParallel(method, CPU)
    losses = []
    for step in range(2):
        torch.manual_seed(step)  # what a method draws from torch's generator is not of this comparison
        output = trained(slice_of(made_up_batch(needs, step), rank, size))
        method.zero_grad()
        output.loss.backward()
        gradients = {
            key: value.grad.clone() for key, value in method.named_parameters() if value.grad is not None
        }
        with torch.no_grad():
            for value in method.parameters():
                if value.grad is not None:
                    value -= 0.1 * value.grad
        method.after_step(step, 10)
        losses.append(distributed.reduce_mean(output.loss.detach()))
    batchnorm.average_running_statistics(method)
    state = {key: value for key, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"losses": torch.stack(losses), "gradients": gradients, "state": state}


def all_methods(rank, size):
    """`two_steps` of every registered method."""
    return {name: two_steps(name, rank, size, **config) for name, config in CONFIGS.items()}


# what keeps the test small; the numbers of the groups and queues are of the global batch
CONFIGS = {name: {} for name in METHODS}
for moco in ("moco_v2", "hapicl_m", "densecl"):
    CONFIGS[moco] = {"batch_norm_groups": 2}
CONFIGS["jigsaw"] = {"permutations": 50, "hidden": 16}
CONFIGS["mae"] = {"decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 3}
CONFIGS["siameseim"] = {"global_weight": 1.0}
CONFIGS["siameseim v1"] = {"form": "v1", "global_weight": 1.0, "dense_weight": 4.0}
CONFIGS["moco_v3"] = {"hidden": 64, "dim": 32}
CONFIGS["hapicl_vit"] = {"hidden": 64, "dim": 32, "pixel_hidden": 64, "pixel_dim": 16}


# options whose loss reaches over the processes in another way than the default
VARIANTS = {
    "anchor, batch negatives": ("hapicl_s", {"form": "anchor", "negatives": "batch"}),
    "image, batch negatives": ("hapicl_m", {"negatives": "batch", "batch_norm_groups": 4}),
    "batch_released": ("hapicl_s", {"form": "batch_released"}),
    "layer3, ignore band": ("hapicl_m", {"feature_level": "layer3", "ignore_band": (0.2, 0.7)}),
    "symmetric, one BatchNorm": ("moco_v2", {"symmetric": True, "batch_norm_groups": 1}),
    "geometry, no warm-up": ("densecl", {"matching": "geometry", "warm_up_steps": 0, "grid": 2}),
    "foreground matches": ("densecl", {"matching": "foreground", "warm_up_steps": 0}),
    "rotation, NCE": ("pirl", {"transform": "rotation", "loss": "nce"}),
    "shared negatives": ("pirl", {"transform": "rotation_jigsaw", "shared_negatives": True}),
    "background, fixed beta": ("harl", {"alpha": 0.3, "beta": 0.5, "beta_end": None}),
}


def all_variants(rank, size):
    """`two_steps` of every variant."""
    return {name: two_steps(method, rank, size, **config) for name, (method, config) in VARIANTS.items()}


def collectives(rank, size):
    """What the functions of `engine.distributed` give in this process."""
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    local = (torch.arange(4, dtype=torch.float64)[:, None].tensor_split(size)[rank]) * weight
    joined = distributed.gather(local)
    (joined @ joined.T).sin().sum().backward()  # the whole loss in every process
    dealt, order = distributed.shuffle(
        torch.arange(8.0)[:, None].tensor_split(size)[rank], seed=1, epoch=2, step=3
    )
    torch.manual_seed(0)
    values = torch.randn(6, 3, 4, dtype=torch.float64).tensor_split(size)[rank].clone().requires_grad_()
    norm = batchnorm.synchronise_batch_norm(nn.BatchNorm1d(3), CPU).double()
    norm(values).pow(3).sum().backward()
    return {
        "gathered": distributed.gather(torch.arange(4.0)[:, None].tensor_split(size)[rank]),
        "gradient": distributed.reduce_mean(weight.grad),
        "dealt": dealt,
        "restored": distributed.unshuffle(dealt, order),
        "any": distributed.any_process(rank == 1, distributed.host_group()),
        "norm_gradient": values.grad,
        "running_var": norm.running_var,
        "accumulated": accumulated(rank, size),
        **bad_loss(rank, size),
    }


def bad_loss(rank, size):
    """The last process's loss is not finite at step 2."""
    module = ToyModule(poison_at=2 if rank == size - 1 else None)
    optimizer = build_optimizer(module, OptimizerSettings(lr_per_256=1.0), batch_size=8, device=CPU)
    kept = {}

    def remember(step, total):
        if step == 1:
            kept.update({name: value.detach().clone() for name, value in module.named_parameters()})
        return {}

    world = distributed.World(rank=rank, size=size)
    source = ToySource(rank=rank, world_size=size)
    try:
        fit(
            module,
            source,
            optimizer,
            LoopSettings(total_steps=8, log_every=4),
            world=world,
            after_step=remember,
        )
    except NonFiniteLossError as error:
        same = all(torch.equal(value, kept[name]) for name, value in module.named_parameters())
        return {"stopped": str(error), "kept": same}
    return {"stopped": "", "kept": False}


class Regression(nn.Module):
    """A loss that is a mean over samples, with a head that gets no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, batch):
        loss = (self.layer(batch) - 1).square().mean()
        return SimpleNamespace(loss=loss, parts={}, embeddings=None, references={})


def accumulated(rank, size):
    """Weights after two updates of two batches each."""
    module = Regression()
    optimizer = build_optimizer(module, OptimizerSettings(lr_per_256=1.0), batch_size=8, device=CPU)
    fit(
        module,
        ToySource(steps_per_epoch=4, rank=rank, world_size=size),
        optimizer,
        LoopSettings(total_steps=2, accumulate=2),
        world=distributed.World(rank=rank, size=size),
    )
    return module.layer.weight.detach()


class JointSource:
    """Made-up batches for `fit`, of this process's slice."""

    steps_per_epoch = 3
    wait_seconds = 0.0

    def __init__(self, needs, rank=0, size=1):
        self.needs, self.rank, self.size = needs, rank, size

    def batches(self, epoch, first_step=0):
        for step in range(first_step, self.steps_per_epoch):
            batch = slice_of(made_up_batch(self.needs, 3 * epoch + step), self.rank, self.size)
            batch.epoch, batch.step = epoch, step
            yield batch


def fitted(name, folder, rank=0, size=1, *, stop_after=None):
    """Train a method for 5 steps, from the checkpoint in the folder if there is one."""
    method, needs = build(name, **CONFIGS[name])
    optimizer = build_optimizer(method, OptimizerSettings(lr_per_256=0.5), batch_size=BATCH, device=CPU)
    first_step = 0
    if (folder / "last.pt").exists():
        state = load_checkpoint(folder / "last.pt")
        method.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    fit(
        method,
        JointSource(needs, rank, size),
        optimizer,
        LoopSettings(total_steps=5, stop_after=stop_after),
        world=distributed.World(rank=rank, size=size),
        folder=folder,
        first_step=first_step,
        after_step=method.after_step,
    )
    return method.state_dict()


def begun_in_two(rank, size):
    """Leave a checkpoint of two steps by two processes in the folder given on the command line."""
    for name in ("hapicl_m", "npid"):
        folder = pathlib.Path(sys.argv[2]) / name
        folder.mkdir(exist_ok=True)
        fitted(name, folder, rank, size, stop_after=2)


def run_in_two(check, folder):
    """Run a function of this file in two processes; gives their two results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, check, str(folder)],
            env=common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [torch.load(pathlib.Path(folder) / f"{check}.{rank}.pt", weights_only=False) for rank in "01"]


if __name__ == "__main__":
    with distributed.processes("cpu") as world:
        result = globals()[sys.argv[1]](world.rank, world.size)
        torch.save(result, pathlib.Path(sys.argv[2]) / f"{sys.argv[1]}.{world.rank}.pt")
