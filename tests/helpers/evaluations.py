"""Evaluations on tiny data, in this process or in two by `two_processes.run_in_two`.

Each function takes (rank, size, folder), where `folder` holds copies of the data of `labelled_data`.
"""

import dataclasses
import signal
import time

import torch
from click.testing import CliRunner
from small_vit import small_vit
from torch import nn

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders
from hapicl.engine import distributed
from hapicl.evaluate import draws, processes
from hapicl.evaluate.batches import TaskBatches
from hapicl.evaluate.classification import knn, linear, semi, svm, vectors
from hapicl.evaluate.detection import data as objects_data
from hapicl.evaluate.detection import detect
from hapicl.evaluate.detection import protocols as detectors
from hapicl.evaluate.features import FeatureStore
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.segmentation import data as pixels_data
from hapicl.evaluate.segmentation import protocols as segmenters
from hapicl.evaluate.segmentation import segment
from hapicl.evaluate.settings import Runtime
from hapicl.models.backbones.base import Backbone

SIDE = 32
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class Pyramid(Backbone):
    """Four maps of 8 channels with BatchNorm, the same weights everywhere; smooth, so that rounding stays."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.blocks = nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Conv2d(8 if number else 3, 8, 3, 2 if number else 4, 1),
                        nn.BatchNorm2d(8),
                        nn.Tanh(),
                    )
                    for number, name in enumerate(LAYERS)
                }
            )
        self.channels, self.last, self.stride = dict.fromkeys(LAYERS, 8), "layer4", 32
        self.stem = "tiny"

    def forward(self, images):
        maps = {}
        for name, block in self.blocks.items():
            maps[name] = images = block(images)
        return maps

    def at_stride(self, stride):
        return self

    def export_state(self):
        return self.state_dict()


def plain(outcome):
    """An outcome as numbers; of the pictures the names."""
    named = [name for name, _ in outcome.pictures]
    each = {name: values.tolist() for name, values in outcome.per_image.items()}
    return dataclasses.asdict(outcome) | {"pictures": named, "per_image": each}


def colours(folder):
    """Training and test images in class folders."""
    train = class_folders(folder / "colours/train")
    return train, class_folders(folder / "colours/test", train.classes)


def halves(folder):
    """Training and test images with labels; void pixels are not spread evenly."""
    everything = pixels_data.paired_folders(folder / "halves/images", folder / "halves/labels", void=9)
    return pixels_data.with_classes(*pixels_data.hold_out(everything, 0.4), None)


def squares(folder):
    """Training and test images with boxes, and the boxes as masks."""

    def with_masks(split):
        data = objects_data.voc_objects(folder / "squares", split)
        images = [
            dataclasses.replace(
                each,
                segments=tuple([[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in each.boxes.tolist()),
            )
            for each in data.images
        ]
        return dataclasses.replace(data, images=tuple(images))

    return with_masks("train"), with_masks("test")


def frozen(rank, size, folder):
    """Everything that reads frozen features or maps: extracted in shares, the first process does the rest."""
    train, test = colours(folder)
    backbone, runtime = Pyramid().eval(), Runtime(store=FeatureStore(), folder=folder / f"frozen{size}")
    known, asked = (
        vectors.features(backbone, images, image_size=SIDE, vector="mean", runtime=runtime, what="")
        for images in (train, test)
    )
    machines = svm.PROTOCOLS["svm-voc07"].replace(max_iterations=20_000)
    truth = [svm.folder_labels(images) for images in (train, test)]
    few = semi.PROTOCOLS["logistic-1pct"].replace(image_size=SIDE)
    cached = linear.PROTOCOLS["linear-moco-cached"].replace(image_size=SIDE, epochs=2, batch_size=7)
    probe = segmenters.PROTOCOLS["seg-probe"].replace(height=SIDE, width=SIDE, steps=3, batch_size=3)
    maps = Runtime(folder=folder / f"maps{size}")
    done = {
        "knn": processes.first_alone(
            lambda: knn.evaluate_knn(known, asked, train.classes, knn.PROTOCOLS["knn-dino"])
        ),
        "svm": processes.first_alone(
            lambda: svm.evaluate_svm(
                known.values.numpy(), truth[0], asked.values.numpy(), truth[1], machines, seed=3
            )
        ),
        "logistic": semi.evaluate_semi(backbone, train, test, few, seed=3, runtime=runtime),
        "cached": linear.evaluate_linear(backbone, train, test, cached, seed=3, runtime=runtime),
        "probe": segment.evaluate_segmentation(Pyramid(), *halves(folder), probe, seed=3, runtime=maps),
    }
    return {name: plain(outcome) for name, outcome in done.items()} | {"here": len(known.labels)}


def tuned(rank, size, folder):
    """Everything that trains on images, each process on its part of a batch."""
    return {
        name: dict(
            zip(("outcome", "backbone"), run(Runtime(folder=folder / f"{name}{size}"), folder), strict=True)
        )
        for name, run in TUNED.items()
    }


def tuned_linear(runtime, folder):
    """A linear classifier on random crops, with a BatchNorm of its own."""
    protocol = linear.PROTOCOLS["linear-mae"].replace(image_size=SIDE, epochs=1, batch_size=8)
    backbone = Pyramid()
    found = linear.evaluate_linear(backbone, *colours(folder), protocol, seed=3, runtime=runtime)
    return plain(found), backbone.state_dict()


def tuned_semi(runtime, folder):
    """The whole network."""
    protocol = semi.PROTOCOLS["semi-finetune"].replace(image_size=SIDE, epochs=1, batch_size=8)
    backbone = Pyramid()
    found = semi.evaluate_semi(backbone, *colours(folder), protocol, seed=3, runtime=runtime)
    return plain(found), backbone.state_dict()


def tuned_segmenter(runtime, folder):
    """DenseCL's head, which drops channels; the crops reach over the edge, so void pixels differ by image."""
    protocol = segmenters.PROTOCOLS["seg-densecl-fcn8"].replace(crop=SIDE, steps=3, batch_size=4)
    backbone = Pyramid()
    found = segment.evaluate_segmentation(backbone, *halves(folder), protocol, seed=3, runtime=runtime)
    return plain(found), backbone.state_dict()


def tuned_detector(runtime, folder):
    """Mask R-CNN with BatchNorm in its heads; the images of a batch have several sizes.

    Two steps: later ones choose by the rounded scores of the steps before which regions train.
    """
    shape = detectors.PROTOCOLS["coco-fpn-4conv1fc"].shape.replace(
        short_sides=(32, 64), long_side=64, anchors=(8, 16, 24, 32, 48), regions=8, channels=8, hidden=8
    )
    protocol = detectors.PROTOCOLS["detect-small"].replace(shape=shape, steps=2, batch_size=4, warmup_steps=0)
    backbone = Pyramid()
    found = detect.evaluate_detection(backbone, *squares(folder), protocol, seed=3, runtime=runtime)
    return plain(found), backbone.state_dict()


def vit():
    """Two blocks of width 48 on patches of 8 pixels, the same weights everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return small_vit(SIDE)


def moved(backbone):
    """The weights of a ViT but for biases of keys, whose gradient is rounding alone, by which AdamW moves."""
    return {name: value for name, value in backbone.state_dict().items() if not name.endswith("qkv.bias")}


def tuned_upernet(runtime, folder):
    """UPerNet on a ViT with drop path, dropped channels and BatchNorm on a context of one cell."""
    protocol = segmenters.PROTOCOLS["seg-upernet-small"].replace(
        crop=SIDE, side=SIDE, steps=2, batch_size=4, channels=8, auxiliary_channels=8, drop_path=0.5
    )
    backbone = vit()
    found = segment.evaluate_segmentation(backbone, *halves(folder), protocol, seed=3, runtime=runtime)
    return plain(found), moved(backbone)


def tuned_vitdet(runtime, folder):
    """ViTDet with masks, drop path and jitter, which leaves some images without an object."""
    shape = detectors.PROTOCOLS["detect-small-vit"].shape.replace(
        short_sides=(64,),
        long_side=64,
        anchors=(8, 16, 24, 32, 48),
        regions=8,
        channels=8,
        hidden=8,
        window=4,
    )
    protocol = detectors.PROTOCOLS["detect-small-vit"].replace(
        shape=shape, steps=2, batch_size=4, drop_path=0.5, jitter=(0.5, 2.0)
    )
    backbone = vit()
    found = detect.evaluate_detection(backbone, *squares(folder), protocol, seed=3, runtime=runtime)
    return plain(found), moved(backbone)


TUNED = {
    "linear": tuned_linear,
    "semi": tuned_semi,
    "segmenter": tuned_segmenter,
    "upernet": tuned_upernet,
    "detector": tuned_detector,
    "vitdet": tuned_vitdet,
}


def rest(rank, size, folder):
    """Leaving together, and what each process says and draws."""
    return {
        "stopped": [stopped(run, folder) for run in (tuned_semi, cached_in_parts)],
        "unshared": failure(lambda: TaskBatches(range(9), batch_size=9, seed=0)),
        "broken": broken_image(folder),
        "dropped": dropped(rank, size),
        "waited": interrupted_wait(rank),
        "said": [command(folder, *words) for words in COMMANDS],
    }


def stopped(run, folder):
    """Why a training left after two steps; its folder is gone on with by the test."""
    try:
        run(Runtime(folder=folder / f"stopped {run.__name__}", stop_after=2), folder)
    except RunStopped as reason:
        return str(reason)
    return "it did not stop"


def cached_in_parts(runtime, folder):
    """A linear probe on stored features, which the first process trains alone."""
    protocol = linear.PROTOCOLS["linear-moco-cached"].replace(image_size=SIDE, epochs=2, batch_size=7)
    found = linear.evaluate_linear(Pyramid(), *colours(folder), protocol, seed=3, runtime=runtime)
    return plain(found), {}


def failure(work):
    """The message of a mistake."""
    try:
        work()
    except UserError as error:
        return str(error)
    return "no mistake"


def broken_image(folder):
    """Of two shares the second holds an image that cannot be read."""
    _, test = colours(folder)
    wrong = dataclasses.replace(test, paths=(*test.paths[:-1], "missing.png"))
    wrong = wrong.select([0] * 64 + [len(wrong) - 1])  # two batches
    return failure(
        lambda: vectors.features(Pyramid(), wrong, image_size=8, vector="mean", runtime=Runtime(), what="")
    )


def dropped(rank, size):
    """Layers that drop, on this process's part of a batch."""
    layers = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.4))
    draws.draw_for_all(layers)
    torch.manual_seed(5)
    return layers(torch.ones(8, 6, 2, 2).tensor_split(size)[rank])


def interrupted_wait(rank):
    """Whether a signal is heeded while the first process works alone."""
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.1 if rank else 0)
    ended = processes.first_alone(lambda: [time.sleep(1), time.monotonic(), distributed.world_size()])
    signal.signal(signal.SIGALRM, before)
    return ended[2], not rank or heard[0] < ended[1]


COMMANDS = (
    ("--set", "k=5", "--out", "r.json"),
    ("--set", "k=5", "--out", "r.json"),
    ("--set", "k=4", "--out", "r.json"),
    ("--set", "k=500", "--out", "s.json"),
)


def command(folder, *words):
    """`evaluate knn`: exit code, what it printed, its mistake."""
    *most, out = words
    said = CliRunner().invoke(
        command_line,
        [
            *(
                "evaluate",
                "knn",
                "random",
                "--arch",
                "resnet18",
                "--image-size",
                "32",
                *most,
                str(folder / out),
            ),
            *("--train", str(folder / "colours/train"), "--test", str(folder / "colours/test")),
        ],
    )
    return said.exit_code, said.output, str(said.exception or "")


def everything(rank, size, folder):
    """All of it in one start."""
    return {part.__name__: part(rank, size, folder) for part in (frozen, tuned, rest)}
