"""Which routes answer with which kind of model, and what is said to who asked the wrong one."""

from __future__ import annotations

from condconv_serve.domain import TaskName
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.context import ServedModels

ROUTES: dict[TaskName, str] = {"classification": "POST /predict", "detection": "POST /detect"}
NAMED = 5
"""How many other models are named."""


def demand_task(
    task: TaskName, models: ServedModels, *, model: str | None, version: str | None, split_key: str | None
) -> None:
    """Refuse a model that is for something else.

    Args:
        task: what the route needs.
        models: those that are served.
        model: its name; None if none was named.
        version: its version or alias, if named.
        split_key: as for `ModelSource.get`.

    Raises:
        InvalidParameter: says which route takes it, and which models would do here.
        ModelNotFound, VersionNotFound: there is no such model.
    """
    found = models.get(model, version, key=split_key).info
    if found.task == task:
        return
    route = ROUTES[found.task]
    if model is not None:
        why = f"{found.name} is a model for {found.task}: use {route}."
    else:
        why = (
            f"You named no model, and the default one, {found.name}, is for {found.task}: use {route}, or name a model."
        )
    fitting = [
        name for name, served in models.models().items() if any(one.info.task == task for one in served.values())
    ]
    named = ", ".join(sorted(fitting)[:NAMED]) + (f" and {more} more" if (more := len(fitting) - NAMED) > 0 else "")
    raise InvalidParameter(f"{why} Models for {task} here: {named or 'none'}.")
