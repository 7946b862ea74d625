"""Every method trains on two processes as on one with the joined batch, and goes on in either from the other.

The two processes are started once for all of it.
"""

import functools

import joint
import pytest
import torch
from joint import CONFIGS, VARIANTS
from two_processes import run_in_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("joint")


@pytest.fixture(scope="module")
def both(folder):
    for name in CONFIGS:
        joint.train(name, folder / "from one" / name, stop_after=2)
    return run_in_two(joint.everything, folder)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The checkpoint of a run of one process that was never interrupted, by method."""
    return functools.cache(lambda name: joint.train(name, folder / "undisturbed" / name))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_two_processes_train_as_one_with_the_joined_batch(both, name):
    alike(joint.two_steps(name, **CONFIGS[name]), [result["methods"][name] for result in both])


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_options_train_on_two_processes_as_on_one(both, name):
    method, config = VARIANTS[name]
    alike(joint.two_steps(method, **config), [result["variants"][name] for result in both])


def alike(alone, results):
    for rank, together in enumerate(results):
        assert together["gradients"].keys() == alone["gradients"].keys()
        assert any(value.abs().max() > 1e-6 for value in alone["gradients"].values())
        close(together, alone, f"process {rank}")


def close(state, expected, what):
    """Compare two nested states, every tensor to 1e-6."""
    left, right = dict(joint.tensors(state)), dict(joint.tensors(expected))
    assert left.keys() == right.keys()
    for place, value in left.items():
        torch.testing.assert_close(
            value,
            right[place],
            rtol=1e-6,
            atol=1e-6,
            check_dtype=True,
            msg=lambda text, place=place: f"{what}, {place}: {text}",
        )


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_run_of_two_processes_goes_on_in_one(both, undisturbed, folder, name):
    assert [result["begun"][name] for result in both] == [2, 2]
    went_on = joint.train(name, folder / "from several" / name)
    assert went_on["step"] == 4
    close(went_on, undisturbed(name), "begun in two")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_run_of_one_process_goes_on_in_two(both, undisturbed, name):
    for result in both:
        assert result["went on"][name]["step"] == 4
        close(result["went on"][name], undisturbed(name), "begun in one")
