"""What a spec would take, before anything is made of it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from api import bodies, openapi
from api.auth import Viewer
from api.configs import configurations
from api.control import Control
from api.errors import Refusal, documented, invalid
from api.routes.again import Again
from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.estimate import CannotEstimate, Estimate, estimate
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec
from worker.contract.values import quantity

router = APIRouter(prefix="/v1/estimate", tags=["estimate"], route_class=Again)

_MEMORY = "a quantity such as 24Gi: of an accelerator, or without one of a node; absent: resources.memory, of a node"


@router.post("", openapi_extra=openapi.body(JobSpec), responses=documented(400, 413, 415, 422))
async def of_spec(
    request: Request,
    control: Control,
    caller: Viewer,
    memory: Annotated[str | None, Query(max_length=32, description=_MEMORY)] = None,
) -> Estimate:
    """The memory per rank of each role and phase of a spec, whether it fits, and the nearest spec that does.

    The models that the spec refers to must be there; its data need not.
    """
    _, document = await bodies.read_json(request, control.settings.max_body)
    try:
        if memory is not None and quantity(memory) <= 0:
            raise ValueError("write a quantity above 0")
    except ValueError as error:
        raise Refusal(422, f"memory: {error}", [Problem("memory", str(error))]) from None
    try:
        spec = parse_spec(document)
        known = await configurations(spec, caller.project, control.resolver, control.store, control.settings)
        return estimate(spec, known, memory)
    except (InvalidSpec, CannotEstimate) as error:
        raise invalid(error.problems) from None
