"""From a saliency map to a mask: regions, threshold, cut along colour edges."""
