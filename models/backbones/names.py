"""Names of backbones, for shells and messages: importing this file imports no torch."""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
TIMM = "timm:"  # before any other network of timm's
# the sizes that papers use; any other Vision Transformer of timm's goes by timm's name
USUAL_VITS = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))


def usual_names() -> tuple[str, ...]:
    """Backbones that a user may look for."""
    return (*RESNETS, *USUAL_VITS)
