"""Shows what an import chose: each value, and where it comes from."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from condconv_serve.cli.output import add_row, print_table, say
from condconv_serve.domain.manifest import Manifest

# Which option gives each value.
_OPTIONS = {
    "transform": "--transform",
    "crop_padding": "--crop",
    "crop_fraction": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
    "labels": "--labels",
}
# What networks with other names of weights do otherwise.
_CONVENTIONS = (
    *("padding", "norm_epsilon", "stride_first", "use_bias", "classifier_bias", "pointwise_norm"),
    *("extra_norm", "scores"),
)
_NAMES = {"crop_padding": "crop", "crop_fraction": "crop", "image_size": "image size"}


def print_origins(path: Path) -> None:
    """Print what the manifest of an imported bundle says of where its values come from."""
    from condconv_serve.store.bundle import read_manifest

    manifest = read_manifest(path)
    origins, assumed = manifest.provenance.origins or {}, manifest.provenance.assumed or ()
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("what", "value", "from"):
        table.add_column(column, overflow="fold")
    for what, where in origins.items():
        style = "yellow" if what in assumed else ""
        origin = f"assumed: {where}" if what in assumed else where
        add_row(table, f"  {_NAMES.get(what, what)}", _value(manifest, what), (origin, style))
    print_table(table)
    if options := [_OPTIONS[what] for what in assumed if what in _OPTIONS]:
        say(
            ("Assumed values may be wrong, and then answers are.", "yellow"),
            f" If you know better, give {', '.join(options)}.",
        )


def _value(manifest: Manifest, what: str) -> str:
    preprocessing = manifest.preprocessing
    match what:
        case "weights":
            return str(manifest.provenance.weights)
        case "labels":
            return f"{manifest.num_classes} classes"
        case "crop_padding" | "crop_fraction":
            return f"{preprocessing.to_domain().crop_share:.3g} of the short side"
        case "classes":
            return str(manifest.num_classes)
        case "conventions":
            found = {key: manifest.architecture.overrides.get(key) for key in _CONVENTIONS}
            changed = [
                f"{key} {str(value).lower() if isinstance(value, bool) else value}"
                for key, value in found.items()
                if value is not None
            ]
            return ", ".join(changed) or "the architecture's"
    value = getattr(preprocessing, what)
    return ", ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
