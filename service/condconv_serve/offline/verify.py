"""Checks a bundle as a server would before serving it."""

from __future__ import annotations

import numpy as np

from condconv_serve.bootstrap import load_model
from condconv_serve.errors import BundleError
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.store import Bundle, read_weights


def verify_bundle(bundle: Bundle, plan: EnginePlan) -> None:
    """Load a bundle as a server would before serving it, and compute one image.

    Raises:
        BundleError: says what is wrong.
    """
    if empty := [
        path for path, value in read_weights(bundle).items() if path.endswith("/moving_variance") and not value.any()
    ]:
        raise BundleError(
            f"{bundle.manifest.name}/{bundle.manifest.version}: all variances in {empty[0]} are 0. Single channels may "
            "never vary, but a whole layer varies: it was never filled in."
        )
    model = load_model(bundle, plan)
    try:
        size = model.info.preprocessing.image_size
        output = model.engine(np.zeros((1, size, size, 3), np.uint8))
    finally:
        model.engine.close()
    if not all(np.isfinite(values).all() for values in output.values()):
        raise BundleError(f"{model.name}/{model.version}: the answer for a black image is not finite.")
