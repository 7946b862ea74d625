"""Backbones of a user's own: the example of the documentation runs, and mistakes are named."""

import re

import pytest
import torch
from small_run import draw_images

import hapicl.models
from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.registry import REGISTERED
from hapicl.models.weights import load_backbone


@pytest.fixture(autouse=True)
def _forget():
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def test_the_example_of_the_page_trains_and_its_weights_are_read(repository, tmp_path, monkeypatch):
    page = (repository / "docs" / "existing-weights.md").read_text("utf-8")
    network, run = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(network.strip().splitlines()) <= 16
    draw_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    exec(compile(network + run, "existing-weights.md", "exec"), {"__name__": "example"})
    backbone, info = load_backbone(str(tmp_path / "runs" / "mine"))
    assert (info.arch, info.fraction) == ("my_network", 1.0)
    assert backbone(torch.zeros(1, 3, 64, 64))[backbone.last].shape[0] == 1


def test_names_that_mean_something_else_are_refused():
    for name in ("resnet18", "timm:convnext_atto", ""):
        with pytest.raises(UserError, match="cannot be registered: the name is taken"):
            hapicl.models.register(name, lambda **_: None)


def test_what_is_registered_must_be_a_backbone():
    hapicl.models.register("mine", lambda **_: torch.nn.Identity())
    with pytest.raises(UserError, match="'mine' builds no hapicl"):
        build_backbone("mine", image_size=64)

    class Bare(hapicl.models.backbones.base.Backbone):
        channels = {"a": 3}  # noqa: RUF012
        last = "b"

    hapicl.models.register("mine", lambda **_: Bare())
    with pytest.raises(UserError, match="'mine' lacks stride, stem"):
        build_backbone("mine", image_size=64)
