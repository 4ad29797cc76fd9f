"""Names of published MnasNet weights."""

from condconv_serve.nn.inverted import timm_layers
from condconv_serve.nn.published import timm_published

PUBLISHED = (timm_published(timm_layers, conventions={"padding": "symmetric", "norm_epsilon": 1e-5}),)
"""Every way in which weights of MnasNet-A1 are published: timm calls it semnasnet."""
