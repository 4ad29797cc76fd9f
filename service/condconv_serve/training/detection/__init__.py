"""Training detectors: prior boxes and objects, losses, and photos that are varied with their boxes."""
