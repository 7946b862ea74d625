"""Draws by counter: SplitMix64 against its reference, uniform, and sliced without drawing the rest."""

import torch

from hapicl.pretrain.modules.counter_draws import GAMMA, draw_integers, split_mix

CPU = torch.device("cpu")


def reference(state: int) -> int:
    """Vigna's splitmix64.c, on Python's whole numbers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_numbers_are_those_of_splitmix64():
    states = [1234567 + place * (GAMMA % 2**64) for place in range(1, 6)]
    expected = [reference(state) for state in states]
    assert expected[:2] == [6457827717110365317, 3203168211198807973]  # published for the seed 1234567
    wrapped = torch.tensor([(state + 2**63) % 2**64 - 2**63 for state in states])
    assert [value % 2**64 for value in split_mix(wrapped).tolist()] == expected
    drawn = draw_integers(1000, (5,), key=1234567, device=CPU)
    assert drawn.tolist() == [(value >> 11) % 1000 for value in expected]


def test_a_slice_is_what_the_whole_stream_has_there():
    whole = draw_integers(97, (6, 5), key=-7, device=CPU)
    assert torch.equal(draw_integers(97, (2, 5), key=-7, device=CPU, first=15), whole[3:5])
    assert not torch.equal(draw_integers(97, (6, 5), key=-8, device=CPU), whole)


def test_numbers_are_uniform():
    counts = torch.bincount(draw_integers(50, (100_000,), key=3, device=CPU), minlength=50)
    assert len(counts) == 50
    # chi-square of 49 degrees of freedom: 99.99 % lie below 96
    assert ((counts - 2000).square() / 2000).sum() < 96
