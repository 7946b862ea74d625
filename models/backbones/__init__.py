"""Networks that give feature maps by name: torchvision's ResNets and timm's Vision Transformers."""
