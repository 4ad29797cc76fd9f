"""Answers with routing are kept for a while, for `GET /routing/{request_id}`."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request

from condconv_serve.domain import Answered, RoutedAnswer
from condconv_serve.fronts.context import AppContext
from condconv_serve.http.scope import facts_of
from condconv_serve.routing.recent import RecentRequest


async def remember(request: Request, answered: Answered[RoutedAnswer], context: AppContext) -> None:
    """Keep a request's answer for its sender, if this server keeps any."""
    if context.recent is None:
        return
    facts = facts_of(request.scope)
    context.recent.remember(
        RecentRequest(
            request_id=facts.request_id,
            model=answered.model.name,
            version=answered.model.version,
            at=time.time(),
            results=answered.results,
        ),
        owner=facts.key_name,
    )
    # What other processes get is sent in the next turn of the loop. So it is on its way before the answer is, whose
    # sender may ask another front for it.
    await asyncio.sleep(0)
