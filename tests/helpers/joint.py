"""Every method on a tiny backbone with made-up batches, trained alone or by several processes."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hapicl.common.randomness import counter_generator
from hapicl.data.geometry import ViewGeometry
from hapicl.data.loading.batch import Batch
from hapicl.engine import batchnorm, distributed
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer
from hapicl.engine.schedule import ScheduleSettings
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.vit import ViTBackbone
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import METHODS, method_class

BATCH, SIZE = 16, 64
CPU = torch.device("cpu")
PATHS = [f"{number}.jpg" for number in range(64)]
VIT_METHODS = {"siameseim", "mae", "moco_v3", "hapicl_vit"}


class TinyBackbone(Backbone):
    """Two maps of few channels with BatchNorm, in place of a ResNet."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 8, 1), nn.BatchNorm2d(6), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh())
        self.channels, self.last, self.stride = {"layer3": 6, "layer4": 8}, "layer4", 16
        self.stem = "tiny"

    def stride_of(self, level):
        return {"layer3": 8, "layer4": 16}[level]

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
    method.before_training(PATHS)
    return method, kind.needs(settings, backbone, image_size=SIZE)


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
    if (first_needs := method.first_pass_needs(needs)) is not None:
        with torch.no_grad():
            method.first_pass(slice_of(made_up_batch(first_needs, 9), rank, size))
        method.end_first_pass()
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


# what keeps the test small; the numbers of the groups and queues are of the global batch
PIXEL = {"pixel_hidden": 32, "pixel_dim": 16}
BYOL = {"hidden": 64, "dim": 32}
CONFIGS = {name: {} for name in METHODS} | {
    "hapicl": PIXEL,
    "hapicl_s": PIXEL,
    "hapicl_m": {"batch_norm_groups": 2, **PIXEL},
    "moco_v2": {"batch_norm_groups": 2},
    "densecl": {"batch_norm_groups": 2},
    "byol": BYOL,
    "harl": BYOL,
    "jigsaw": {"permutations": 50, "hidden": 16},
    "mae": {"decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 3},
    "siameseim": {"global_weight": 1.0},
    "siameseim v1": {"form": "v1", "global_weight": 1.0, "dense_weight": 4.0},
    "moco_v3": BYOL,
    "hapicl_vit": {**BYOL, **PIXEL},
}

# options whose loss reaches over the processes in another way than the default
VARIANTS = {
    "anchor, batch negatives": ("hapicl_s", {"form": "anchor", "negatives": "batch", **PIXEL}),
    "image, batch negatives": ("hapicl_m", {"negatives": "batch", "batch_norm_groups": 4, **PIXEL}),
    "batch_released": ("hapicl_s", {"form": "batch_released", **PIXEL}),
    "layer3, ignore band": ("hapicl_m", {"feature_level": "layer3", "ignore_band": (0.2, 0.7), **PIXEL}),
    "symmetric, one BatchNorm": ("moco_v2", {"symmetric": True, "batch_norm_groups": 1}),
    "geometry, no warm-up": ("densecl", {"matching": "geometry", "warm_up_steps": 0, "grid": 2}),
    "foreground matches": ("densecl", {"matching": "foreground", "warm_up_steps": 0}),
    "rotation, NCE": ("pirl", {"transform": "rotation", "loss": "nce"}),
    "groups of the bank's network": ("pirl", {"batch_norm_groups": 4}),
    "one queue": ("hapicl_m", {"queue_per_view": False, "batch_norm_groups": 2, **PIXEL}),
    "two layers": ("simclr", {"head_layers": 2}),
    "shared negatives": ("pirl", {"transform": "rotation_jigsaw", "shared_negatives": True}),
    "background, fixed beta": ("harl", {"alpha": 0.3, "beta": 0.5, "beta_end": None, **BYOL}),
}


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


def train(name, folder, rank=0, size=1, *, steps=4, stop_after=None):
    """Train a method to the end in a folder, from its checkpoint if it holds one; gives the checkpoint."""
    method, needs = build(name, **CONFIGS[name])
    optimizer = build_optimizer(method, OptimizerSettings(base_lr=0.5), batch_size=BATCH, device=CPU)
    folder.mkdir(parents=True, exist_ok=True)
    first_step = 0
    if (folder / "last.pt").exists():
        state = load_checkpoint(folder / "last.pt")
        method.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
        method.before_training(PATHS)
    fit(
        method,
        JointSource(needs, rank, size),
        optimizer,
        LoopSettings(total_steps=steps, schedule=ScheduleSettings(warmup_epochs=1), stop_after=stop_after),
        world=distributed.World(rank=rank, size=size),
        folder=folder,
        first_step=first_step,
        hooks=Hooks(after_step=method.after_step),
    )
    return load_checkpoint(folder / "last.pt")


def everything(rank, size, folder):
    """All that the tests want of several processes, so that they are started once.

    Goes on with the runs in FOLDER/from one and leaves runs of two steps in FOLDER/from several.
    """
    return {
        "methods": {name: two_steps(name, rank, size, **config) for name, config in CONFIGS.items()},
        "variants": {
            name: two_steps(method, rank, size, **config) for name, (method, config) in VARIANTS.items()
        },
        "begun": {
            name: train(name, folder / "from several" / name, rank, size, stop_after=2)["step"]
            for name in CONFIGS
        },
        "went on": {name: train(name, folder / "from one" / name, rank, size) for name in CONFIGS},
    }


def tensors(value, place=""):
    """All tensors of a nested state, by place."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{place}/{key}")
