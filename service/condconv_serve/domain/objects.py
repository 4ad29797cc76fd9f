"""Objects that are known to be in a photo, as a data set says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects in one photo.

    Attributes:
        boxes: float64 `[N, 4]`, `ymin, xmin, ymax, xmax`: in pixels of the upright photo, or where 0 to 1 is the row.
        classes: int64 `[N]`.
        crowd: bool `[N]`: whether a box holds a crowd (COCO's `iscrowd`) or is difficult (Pascal VOC). Such boxes are
            neither to be found nor wrong to be found.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.classes)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Objects:
        """Some of them."""
        return Objects(self.boxes[which], self.classes[which], self.crowd[which])
