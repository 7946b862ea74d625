"""The pass over all images before the first step, which fills the memory bank of PIRL and NPID."""

import pytest
import torch

from hapicl.common.config import build
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.pretrain import first_pass
from hapicl.pretrain.components import assemble, build_loader
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.methods.npid import NPID
from hapicl.pretrain.modules.memory import random_rows
from hapicl.pretrain.train import pretrain


def settings(folder, **changes):
    """Twelve images in batches of five: two of them are in no whole batch of an epoch."""
    return build(
        RunSettings,
        {
            "method": "npid",
            "arch": "resnet18",
            "image_size": 32,
            "batch_size": 5,
            "steps": 4,
            "images": str(folder),
            "device": "cpu",
            "workers": 0,
            **changes,
        },
    )


@pytest.mark.parametrize("method", ["npid", "pirl"])
def test_the_bank_held_random_rows_where_untrained_embeddings_cluster(flat_folder, method):
    components = assemble(settings(flat_folder, method=method), World())
    network, bank = components.method, components.method.contrast.bank
    before = {name: value.clone() for name, value in network.state_dict().items() if "bank" not in name}
    said = []
    first_pass.run_first_pass(components, prepare=lambda batch: batch, info=said.append)
    assert bank.filled
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(12))
    untouched = (bank.rows == random_rows(12, 128, 0, "bank")).all(dim=1)
    assert not untouched.any()
    # untrained embeddings are nearly alike; random rows of 128 dimensions are nearly orthogonal
    assert (bank.rows @ bank.rows.T).min() > 0.5
    for name, value in network.state_dict().items():
        assert "bank" in name or torch.equal(value, before[name]), name
    assert said[0] == "first pass: every one of the 12 images once, without gradient"
    assert said[-1].startswith("first pass: done in")


def test_rows_are_the_embeddings_of_their_own_images(flat_folder):
    components = assemble(settings(flat_folder), World())
    network = components.method
    first_pass.run_first_pass(components, prepare=lambda batch: batch, info=lambda text: None)
    with build_loader(components.settings, components.needs, World(), every_image=True) as loader:
        batches = list(loader.batches(first_pass.EPOCH))
    assert sorted(torch.cat([batch.index for batch in batches])[:12].tolist()) == list(range(12))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.embed(batches[1].views[0]), dim=1)
    torch.testing.assert_close(network.contrast.bank.rows[batches[1].index], expected)


def test_a_resumed_run_fills_the_bank_no_second_time_and_goes_on_to_the_bit(
    flat_folder, tmp_path, monkeypatch
):
    calls = []
    plain = NPID.first_pass
    monkeypatch.setattr(
        NPID, "first_pass", lambda self, batch: (calls.append(len(batch)), plain(self, batch))
    )
    pretrain(settings(flat_folder, out=str(tmp_path / "whole")), show=False)
    assert calls == [5, 5, 5]
    halves = settings(flat_folder, out=str(tmp_path / "halves"))
    pretrain(halves.replace(stop_after=2), show=False)
    assert load_checkpoint(tmp_path / "halves" / "last.pt")["module"]["contrast.bank.filled"]
    assert len(calls) == 6
    pretrain(halves.replace(resume="auto"), show=False)
    assert len(calls) == 6
    whole, again = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "halves"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_methods_without_a_bank_pass_over_nothing(flat_folder):
    components = assemble(settings(flat_folder, method="simclr"), World())
    said = []
    first_pass.run_first_pass(components, prepare=lambda batch: batch, info=said.append)
    assert said == []
