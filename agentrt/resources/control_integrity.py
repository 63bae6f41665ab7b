"""Pure: what must hold of the controller's calls after every event."""

from __future__ import annotations

from collections.abc import Iterable

from agentrt.errors import InternalError
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.control_state import LiveCall

__all__ = ["check"]


def check(config: ControllerConfig, calls: Iterable[LiveCall]) -> None:
    """Check every call by itself.

    Raises:
        InternalError: with the call and the figures that disagree.
    """
    for call in calls:
        for what, holds in _claims(config, call):
            if not holds:
                raise InternalError(f"{what}: {call!r}.")


def _claims(config: ControllerConfig, call: LiveCall) -> Iterable[tuple[str, bool]]:
    bound = max(config.max_freeze[call.spec.priority], config.stall_deadline)
    yield (
        "a claim is above its ceiling or budget",
        call.claim <= min(call.ceiling, config.budgets.most(call)),
    )
    yield "a soft limit is above its hard limit", 0 <= call.soft <= call.claim
    yield "a reservation is not between zero and the claim", 0 <= call.reserved <= call.claim
    yield "a waiting call holds something", call.live or call.reserved == call.usage == 0
    yield (
        "a freeze has no bound",
        call.state != "frozen" or call.freeze_until <= (call.changed + bound),
    )
    yield (
        "a throttle has no deadline or no hard limit above",
        call.high is None or (call.high_deadline > 0 and call.high <= call.claim),
    )
    yield "a frozen call says not what for", (call.state == "frozen") == (call.held_for is not None)
