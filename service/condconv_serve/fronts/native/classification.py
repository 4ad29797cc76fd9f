"""What the routes share that classify images."""

from __future__ import annotations

import time
from typing import TypeVar

from fastapi import Request

from condconv_serve.domain import Classification
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.answering import answer_images
from condconv_serve.fronts.native.schemas import RoutingParameters
from condconv_serve.http.scope import facts_of
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.tasks.classification import Classify

Parameters = TypeVar("Parameters", bound=RoutingParameters)


async def classify(request: Request, kind: type[Parameters], context: AppContext) -> tuple[Parameters, Classification]:
    """Classify a request's images, and remember the answer for its sender.

    Arguments, results and errors are those of `answer_images`.
    """
    parameters, classification = await answer_images(
        request, kind, context, task=lambda asked: Classify(asked.top_k, asked.threshold)
    )
    if context.recent is not None:
        facts = facts_of(request.scope)
        context.recent.remember(
            RecentRequest(
                request_id=facts.request_id,
                model=classification.model.name,
                version=classification.model.version,
                at=time.time(),
                results=classification.results,
            ),
            owner=facts.key_name,
        )
    return parameters, classification
