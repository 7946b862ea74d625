"""Saliency: how much each pixel stands out from the background, from several cues."""
