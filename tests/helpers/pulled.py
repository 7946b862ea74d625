"""SimCLR with a feature pull on a tiny backbone, alone or in several processes; see `joint.two_steps`."""

import joint

from hapicl.pretrain.start import FeaturePull


def two_steps(rank, size, folder):
    """Losses, gradients and state of two steps in float64."""
    plain = joint.build

    def pulled(name, **config):
        method, needs = plain(name, **config)
        FeaturePull(method, method.backbone, 5.0, "map")
        return method, needs

    joint.build = pulled
    try:
        return joint.two_steps("simclr", rank, size)
    finally:
        joint.build = plain
