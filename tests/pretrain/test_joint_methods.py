"""Every method trains on two processes as on one with the joined batch."""

import joint
import pytest
import torch
from joint import CONFIGS, VARIANTS


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return joint.run_in_two("all_methods", tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def both_variants(tmp_path_factory):
    return joint.run_in_two("all_variants", tmp_path_factory.mktemp("variants"))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_two_processes_train_as_one_with_the_joined_batch(both, name):
    alike(joint.two_steps(name, **CONFIGS[name]), [result[name] for result in both])


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_options_train_on_two_processes_as_on_one(both_variants, name):
    method, config = VARIANTS[name]
    alike(joint.two_steps(method, **config), [result[name] for result in both_variants])


def alike(alone, results):
    for rank, together in enumerate(results):
        close(together["losses"], alone["losses"], f"loss, process {rank}")
        assert together["gradients"].keys() == alone["gradients"].keys()
        assert any(value.abs().max() > 1e-6 for value in alone["gradients"].values())
        for part in ("gradients", "state"):
            for key, value in alone[part].items():
                close(together[part][key], value, f"{part} of {key}, process {rank}")


def close(value, expected, what):
    torch.testing.assert_close(
        value, expected, rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}", check_dtype=True
    )


def test_a_run_of_two_processes_goes_on_in_one(tmp_path):
    joint.run_in_two("begun_in_two", tmp_path)
    for name in ("hapicl_m", "npid"):
        assert joint.load_checkpoint(tmp_path / name / "last.pt")["step"] == 2
        went_on = joint.fitted(name, tmp_path / name)
        (tmp_path / f"{name} alone").mkdir()
        alone = joint.fitted(name, tmp_path / f"{name} alone")
        for key, value in alone.items():
            if isinstance(value, torch.Tensor):
                close(went_on[key], value, f"{name}: {key}")
