"""Boxes and instance masks: the Pascal VOC layout (XML) and COCO's JSON.

Boxes are (x1, y1, x2, y2) in pixels, half open: VOC's xmin and ymin count from 1 and are moved by one.
Shape legend: T objects, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from ...common.coco import read_coco, segment_fits, segment_mask
from ...common.errors import UserError
from ...data.images.class_folders import read_lines
from ...data.images.decode import image_size, read_image
from ...models.preprocess import as_tensor
from ..identity import files_hash
from ..segmentation.data import held_out


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of one image; class numbers from 1 (0 is background in torchvision's detectors)."""

    image: Path
    boxes: np.ndarray  # (T, 4) float32
    labels: np.ndarray  # (T,) int64, 1 .. classes
    difficult: np.ndarray  # (T,) bool: VOC's difficult, COCO's crowds
    segments: tuple[Any, ...] | None = None  # T COCO polygons or run lengths; None without masks


@dataclass(frozen=True, kw_only=True)
class LabelledObjects:
    """N images with their objects; `ids` name them in COCO's evaluator."""

    name: str
    root: Path
    images: tuple[Objects, ...]  # N
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    @property
    def masks(self) -> bool:
        """Whether every object has a mask."""
        return all(objects.segments is not None for objects in self.images)

    def take(self, indices: Sequence[int]) -> LabelledObjects:
        """The images at `indices`, which may name one more than once."""
        return replace(self, images=tuple(self.images[index] for index in indices))

    def record(self) -> dict[str, object]:
        """JSON-able description."""
        boxes = sum(len(objects.boxes) for objects in self.images)
        files = [objects.image for objects in self.images]
        truth = [[objects.boxes.tolist(), objects.labels.tolist()] for objects in self.images]
        return {
            "name": self.name,
            "root": str(self.root),
            "images": len(self),
            "objects": boxes,
            "classes": list(self.classes),
            "files": files_hash(files, truth),
        }


def voc_objects(root: Path, split: str, classes: Sequence[str] | None = None) -> LabelledObjects:
    """A split of the VOC layout: ImageSets/Main/<split>.txt, JPEGImages, Annotations.

    Args:
        root: folder of the layout.
        split: name of the list, such as trainval, without `.txt`.
        classes: class names in order; None takes the names in the annotations, sorted.

    Raises:
        UserError: for a missing list, image or annotation, a broken XML or box, or a class not in `classes`.
    """
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    names = voc_list(root, split)
    parsed = [_voc_annotation(root / "Annotations" / f"{name}.xml") for name in names]
    known = tuple(classes or sorted({label for objects in parsed for label, _, _ in objects}))
    number = {name: index for index, name in enumerate(known, start=1)}
    images = []
    for name, objects in zip(names, parsed, strict=True):
        path = root / "JPEGImages" / f"{name}.jpg"
        if not path.is_file():
            raise UserError(f"{listed} names {name}, but there is no {path}")
        strange = [label for label, _, _ in objects if label not in number]
        if strange:
            raise UserError(
                f"{root}/Annotations/{name}.xml: class {strange[0]!r} is none of {', '.join(known)}"
            )
        found = Objects(
            image=path,
            boxes=np.asarray([box for _, box, _ in objects], np.float32).reshape(-1, 4),
            labels=np.asarray([number[label] for label, _, _ in objects], np.int64),
            difficult=np.asarray([hard for _, _, hard in objects], bool),
        )
        images.append(_checked(found, root / "Annotations" / f"{name}.xml"))
    return LabelledObjects(name=f"{root.name}/{split}", root=root, images=tuple(images), classes=known)


def voc_list(root: Path, split: str) -> list[str]:
    """Names of the images in a split of the VOC layout.

    Raises:
        UserError: if the list is missing or empty.
    """
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    names = [line.split()[0] for line in read_lines(listed, "--voc the Pascal VOC layout with that split")]
    if not names:
        raise UserError(f"{listed} names no image")
    return names


def _voc_annotation(path: Path) -> list[tuple[str, list[float], bool]]:
    """(class, half-open box, difficult) of each object of an XML file."""
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError as error:
        raise UserError(f"no annotation {path}; every listed image needs one") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is no XML ({error})") from error
    found = []
    for entry in tree.iter("object"):
        try:
            xmin, ymin, xmax, ymax = (
                float(entry.findtext(f"bndbox/{side}") or "missing")
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError as error:
            raise UserError(f"{path}: an object lacks a side of its bndbox, or it is no number") from error
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise UserError(f"{path}: the box {xmin:g} {ymin:g} {xmax:g} {ymax:g} is not finite")
        box = [max(0.0, xmin - 1), max(0.0, ymin - 1), xmax, ymax]
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(f"{path}: the box {xmin:g} {ymin:g} {xmax:g} {ymax:g} is empty")
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{path}: an object has no name; every object needs its class")
        found.append((name, box, (entry.findtext("difficult") or "0").strip() == "1"))
    return found


def coco_objects(images: Path, annotations: Path, classes: Sequence[str] | None = None) -> LabelledObjects:
    """Images and a COCO JSON (`images`, `annotations`, `categories`), with masks where all objects have them.

    Raises:
        UserError: if the JSON is missing or lacks a part, names an image that is not there, or an annotation
            is broken.
    """
    content = read_coco(annotations)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    known = tuple(classes or (names[key] for key in sorted(names)))
    number = {name: index for index, name in enumerate(known, start=1)}
    grouped: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] not in grouped or names.get(entry["category_id"]) not in number:
            raise UserError(
                f"{annotations}: annotation {entry.get('id')} names image {entry['image_id']} and category "
                f"{entry['category_id']}, of which one is not in the file's lists or not in the training's"
            )
        grouped[entry["image_id"]].append(entry)
    found = []
    for entry in content["images"]:
        path = images / entry["file_name"]
        if not path.is_file():
            raise UserError(f"{annotations} names {entry['file_name']}, but there is no {path}")
        boxed = [item for item in grouped[entry["id"]] if item["bbox"][2] > 0 and item["bbox"][3] > 0]
        labels = [number[names[item["category_id"]]] for item in boxed]
        found.append(_checked(_coco_objects(path, boxed, labels), annotations))
    if not found:
        raise UserError(f"{annotations} names no image")
    return LabelledObjects(name=annotations.stem, root=images, images=tuple(found), classes=known)


def _coco_objects(path: Path, entries: list[dict[str, Any]], labels: list[int]) -> Objects:
    """One image's objects; boxes of width or height 0 were left out, as detectron2 leaves them out."""
    boxes = np.asarray([item["bbox"] for item in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    segments = tuple(item.get("segmentation") for item in entries)
    return Objects(
        image=path,
        boxes=boxes,
        labels=np.asarray(labels, np.int64),
        difficult=np.asarray([bool(item.get("iscrowd", 0)) for item in entries], bool),
        segments=segments if all(segments) else None,
    )


def _checked(objects: Objects, source: Path) -> Objects:
    """Refuse objects that cannot be in their image, whose header is read.

    Args:
        objects: of one image.
        source: the annotation file, for the error.
    """
    height, width = image_size(objects.image)
    left, top, right, bottom = objects.boxes.T
    if ((left >= width) | (top >= height) | (right <= 0) | (bottom <= 0)).any():
        raise UserError(
            f"{source}: a box of {objects.image} lies outside its {width} x {height} pixels; "
            "mend it, or put the image there that was annotated"
        )
    for segment in objects.segments or ():
        if not segment_fits(segment, height, width):
            raise UserError(
                f"{source}: a segmentation of {objects.image} is broken, or of another size than its "
                f"{width} x {height} pixels"
            )
    return objects


def segment_masks(segments: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Rasterise COCO polygons or run lengths to (T, H, W) bool, as COCO's own tools do."""
    masks = np.zeros((len(segments), height, width), bool)
    for index, segment in enumerate(segments):
        masks[index] = segment_mask(segment, height, width).reshape(height, width)
    return masks


Augmentation = Callable[[Tensor, dict[str, Tensor], np.random.Generator], tuple[Tensor, dict[str, Tensor]]]


class DetectionSamples:
    """Images with targets as torchvision's detectors take them, flipped at random for training."""

    def __init__(self, data: LabelledObjects, *, train: bool, augment: Augmentation | None = None) -> None:
        """Training leaves out images without an object and objects that are difficult or crowds.

        Args:
            data: the images.
            train: whether they are flipped, and some left out.
            augment: what else is done to an image and its target in training, with the sample's generator.
        """
        kept = [objects for objects in data.images if not train or (~objects.difficult).any()]
        if not kept:
            raise UserError(f"{data.name}: no image has an object that counts")
        self.data, self.train, self.objects, self.augment = data, train, kept, augment

    def __len__(self) -> int:
        """Return the number of images used."""
        return len(self.objects)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(3, H, W) uint8 image; `boxes` (T, 4), `labels` (T,), `masks` (T, H, W) uint8 where there are."""
        objects = self.objects[index]
        image = as_tensor(read_image(objects.image))
        keep = ~objects.difficult if self.train else np.ones(len(objects.labels), bool)
        target = {
            "boxes": torch.from_numpy(objects.boxes[keep].copy()),
            "labels": torch.from_numpy(objects.labels[keep]),
        }
        height, width = image.shape[1:]
        if objects.segments is not None and self.train:
            kept = [segment for segment, used in zip(objects.segments, keep, strict=True) if used]
            target["masks"] = torch.from_numpy(segment_masks(kept, height, width).astype(np.uint8))
        if self.train and generator.random() < 0.5:
            image = image.flip(2)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
            if "masks" in target:
                target["masks"] = target["masks"].flip(2)
        if self.augment is not None:
            return self.augment(image, target, generator)
        return image, target


def collate_lists(
    samples: list[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of different sizes stay a list."""
    return [image for image, _ in samples], [target for _, target in samples]


def hold_out_objects(data: LabelledObjects, fraction: float) -> tuple[LabelledObjects, LabelledObjects]:
    """Split into training and test images; depends on the number of images alone."""
    held = held_out(len(data), fraction)
    return data.take(sorted(set(range(len(data))) - set(held))), data.take(held)


def coco_truth(data: LabelledObjects) -> dict[str, Any]:
    """The data as COCO's ground truth dictionary; image i has id i + 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, objects in enumerate(data.images, start=1):
        height, width = image_size(objects.image)
        images.append({"id": number, "height": height, "width": width, "file_name": objects.image.name})
        for index, (box, label) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
            x1, y1, x2, y2 = (float(side) for side in box)
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(objects.difficult[index]),
            }
            if objects.segments is not None:
                entry["segmentation"] = objects.segments[index]
                entry["area"] = float(segment_masks([objects.segments[index]], height, width).sum())
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(data.classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}
