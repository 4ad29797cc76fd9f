"""Every registered SSD detector."""

from __future__ import annotations

from dataclasses import replace

from condconv_serve.nn import mobilenet_v1, mobilenet_v2
from condconv_serve.nn.families import Architecture
from condconv_serve.nn.ssd.spec import SSDSpec

_BACKBONES: dict[str, Architecture] = {
    one.name: one for family in (mobilenet_v1.FAMILY, mobilenet_v2.FAMILY) for one in family.architectures
}
_V1 = SSDSpec(name="ssd300-mobilenet-v1", backbone=_BACKBONES["mobilenet-v1"], scores="sigmoid")
_V2 = SSDSpec(name="ssdlite320-mobilenet-v2", backbone=_BACKBONES["mobilenet-v2"], image_size=320, head="ssdlite")


def _with_experts(spec: SSDSpec) -> SSDSpec:
    """The same with eight experts where the paper has them."""
    backbone = _BACKBONES[f"condconv-{spec.backbone.name}-8e"]
    return replace(spec, name=f"condconv-{spec.name}-8e", backbone=backbone, condconv_extras=True)


_V1_512 = replace(_V1, name="ssd512-mobilenet-v1", image_size=512)
ARCHITECTURES = (
    _V1,
    _with_experts(_V1),
    _V1_512,
    _with_experts(_V1_512),
    _V2,
    _with_experts(_V2),
    replace(_V2, name="ssdlite"),
)
"""All of them. `ssdlite` is to be given a backbone: its own is only the usual one."""
