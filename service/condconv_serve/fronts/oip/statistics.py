"""Triton's statistics extension: what each version has done since the process began."""

from __future__ import annotations

from typing import Any

from condconv_serve.fronts.context import ServedModels, TallySource
from condconv_serve.telemetry.tally import Total, VersionTally


async def model_statistics(
    tallies: TallySource, models: ServedModels, *, name: str | None = None, version: str | None = None
) -> dict[str, Any]:
    """The figures of one version, of all versions of a model, or of all that is served; in the words of REST.

    Triton counts stages by request; here they are by row, as each row goes its own way.

    Args:
        tallies: the counts.
        models: what is served.
        name: of the model; all models if None.
        version: of the model, or an alias; all its versions if None.

    Raises:
        ModelNotFound, VersionNotFound, ModelUnavailable: there is no such model.
    """
    if name is None:
        found = [(each, v) for each, versions in models.models().items() for v in versions]
    elif version is not None:
        found = [(name, models.get(name, version).version)]
    else:
        models.get(name)
        found = [(name, v) for v in models.models().get(name, {})]
    found.sort(key=lambda pair: (pair[0], int(pair[1])))
    figures = zip(found, await tallies.read(found), strict=True)
    return {"model_stats": [_figures(each, v, tally) for (each, v), tally in figures]}


def _figures(name: str, version: str, tally: VersionTally) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "last_inference": int(tally.last_request * 1e3),
        "inference_count": tally.inference.count,
        "execution_count": sum(total.count for total in tally.batches.values()),
        "inference_stats": {
            "success": _total(tally.success),
            "fail": _total(tally.failure),
            "queue": _total(tally.queue),
            "compute_input": _total(tally.decode),
            "compute_infer": _total(tally.inference),
            "compute_output": _total(tally.rest),
            "cache_hit": _total(tally.cache_hit),
            "cache_miss": _total(tally.cache_miss),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": total.count, "ns": 0},  # images are decoded before they are in a batch
                "compute_infer": _total(total),
                "compute_output": {"count": total.count, "ns": 0},
            }
            for size, total in sorted(tally.batches.items())
        ],
    }


def _total(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": int(total.seconds * 1e9)}
