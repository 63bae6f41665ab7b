"""Placement: which worker serves a turn, and when a waiting session moves to another one.

Pure: the router takes an event and the time, changes its state, and returns what is to be done. It
must not know what a worker is: the simulator drives it under a virtual clock, a cluster backend
with real engines.
"""

from agentrt.cluster.placement import Placement, StealRule, TurnAsk
from agentrt.cluster.registry import make_placement, placement_names
from agentrt.cluster.router import Router
from agentrt.cluster.state import Assignment, RouterStatistics, Steal

__all__ = [
    "Assignment",
    "Placement",
    "Router",
    "RouterStatistics",
    "Steal",
    "StealRule",
    "TurnAsk",
    "make_placement",
    "placement_names",
]
