"""`hapicl export --to onnx`: a backbone as a graph that onnxruntime and others run without torch.

Made by torch's exporter of captured programs (`dynamo=True`), the one that torch develops; the older one by
tracing is deprecated there. Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from ...common.atomic_files import atomic_write
from ...common.config import build
from ...common.errors import UserError
from ...models.backbones.base import Backbone, Vector
from ...models.backbones.resnet import ResNetBackbone
from ...models.features import evaluation_vector
from ...models.weights import WeightsInfo, describe_weights
from ..classification.vectors import FeatureProtocol, evaluation_vectors
from .export import Exported, place_of, trained_backbone
from .timm_form import trained_size

NEEDED = ("onnx", "onnxruntime", "onnxscript")  # of the extra `clients`
INPUT, VECTOR = "images", "vector"
TOLERANCE = 1e-4  # absolute and relative, between onnxruntime and torch
Gives = Literal["maps", "vector"]


class _Graph(nn.Module):
    """A backbone whose output is a tuple, as graphs have it."""

    def __init__(self, backbone: Backbone, gives: Gives, vector: Vector) -> None:
        super().__init__()
        self.backbone, self.gives, self.vector = backbone, gives, vector
        self.names = list(backbone.channels) if gives == "maps" else [VECTOR]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) normalised to the maps (B, C, S, S) and the token, or a vector (B, C)."""
        if self.gives == "vector":
            return (evaluation_vector(self.backbone, images, self.vector),)
        maps = self.backbone(images)
        return tuple(maps[name] for name in self.names)


def export_onnx(
    spec: str, out: Path, *, arch: str | None = None, image_size: int | None = None, gives: Gives = "vector"
) -> tuple[Exported, str]:
    """Write a graph for any number of images at once, and check it by onnxruntime against torch.

    Args:
        spec: weights as `load_backbone` takes them, not random.
        out: the file; a name without suffix gets `.onnx`.
        arch: the backbone's name where the weights do not say.
        image_size: side of the images, pixels; None takes that of training. A ResNet's graph takes any size.
        gives: every map by its name, or the one vector that stands for an image in our evaluations.

    Returns:
        What was written (`keys` counts the graph's weights), and how much of `spec` matched.

    Raises:
        UserError: if a library of the extra is missing, the file is there or cannot be written, the weights
            do not match, the network has no such graph, or the graph gives other numbers.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {', '.join(missing)}: pip install hapicl[clients]")
    path = place_of(out, "onnx", ".onnx")
    size = image_size or int(describe_weights(spec).get("image_size", 224))
    backbone, info = trained_backbone(spec, arch, image_size=size)
    size = trained_size(backbone, {"image_size": size})
    vector = evaluation_vectors(build(FeatureProtocol, {}), info, backbone)[0]
    graph = _Graph(backbone, gives, vector).eval()
    model = _export(graph, size, any_size=isinstance(backbone, ResNetBackbone))
    for name, value in _about(info, graph, size).items():
        model.metadata_props.add(key=name, value=value)
    content = model.SerializeToString()
    _check(graph, content, size)
    with atomic_write(path) as part:
        part.write_bytes(content)
    return Exported(
        path, len(model.graph.initializer), {"onnxruntime": _lines(graph, path, size)}
    ), info.line()


def _export(graph: _Graph, size: int, *, any_size: bool) -> Any:
    """The graph as ONNX's protocol buffer; height and width are free where the network takes any."""
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {}
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (torch.zeros(2, graph.backbone.in_channels, size, size),),
            input_names=[INPUT],
            output_names=graph.names,
            dynamic_shapes={INPUT: {0: Dim("batch"), **sizes}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError("torch can export this network for one number of images only; use --to hub")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own remarks on its progress and on torch's internals."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _about(info: WeightsInfo, graph: _Graph, size: int) -> dict[str, str]:
    """What the file says of itself."""
    mean, std = graph.backbone.inputs.statistics
    return {
        "arch": info.arch,
        "stem": info.stem,
        "method": info.method,
        "weights_sha256": info.sha256,
        "image_size": str(size),
        "mean": ", ".join(map(str, mean)),
        "std": ", ".join(map(str, std)),
        "vector": graph.vector if graph.gives == "vector" else "",
    }


def _check(graph: _Graph, content: bytes, size: int) -> None:
    """Run the graph on one and on three images, and compare with torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        shape = (count, graph.backbone.in_channels, size, size)
        images = torch.linspace(-2, 2, math.prod(shape)).reshape(shape)
        with torch.inference_mode():
            expected = graph(images)
        found = session.run(graph.names, {INPUT: images.numpy()})
        for name, theirs, ours in zip(graph.names, found, expected, strict=True):
            if not np.allclose(theirs, ours.numpy(), rtol=TOLERANCE, atol=TOLERANCE):
                difference = float(np.abs(theirs - ours.numpy()).max())
                raise UserError(
                    f"onnxruntime gives another {name} than torch, by up to {difference:.2g}; nothing is "
                    "written"
                )


def _lines(graph: _Graph, path: Path, size: int) -> str:
    """How to run it."""
    mean, std = graph.backbone.inputs.statistics
    colours = "RGB" if graph.backbone.inputs.are_photographs else "channels"
    return "\n".join(
        [
            "import numpy, onnxruntime",
            f"session = onnxruntime.InferenceSession({json.dumps(str(path), ensure_ascii=False)})",
            f"# {colours} in 0 .. 1, less the mean, by the deviation, as many images as you like",
            f"mean, std = {mean}, {std}",
            f"images = numpy.zeros((1, {graph.backbone.in_channels}, {size}, {size}), numpy.float32)",
            f"outputs = session.run({json.dumps(graph.names)}, {{{json.dumps(INPUT)}: images}})",
        ]
    )
