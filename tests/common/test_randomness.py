import pytest

from hapicl.common.randomness import counter_generator


def _draws(*counter, **purpose):
    return counter_generator(*counter, **purpose).random(8).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**63 - 2, 2**63, 2**64 - 2])
def test_every_counter_matters_at_every_seed(seed):
    first = _draws(seed, 0, 0, 0)
    assert first == _draws(seed, 0, 0, 0)
    others = [_draws(seed + 1, 0, 0, 0), _draws(seed, 1, 0, 0), _draws(seed, 0, 1, 0), _draws(seed, 0, 0, 1)]
    others.append(_draws(seed, 0, 0, 0, purpose="photometric"))
    assert len({tuple(draws) for draws in [first, *others]}) == 6
