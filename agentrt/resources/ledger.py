"""What is kept of every call that ended: what it taught, and its record."""

from __future__ import annotations

import json
import logging
import os
import time

from agentrt.resources.feedback import Ending, Feedback, record
from agentrt.resources.governed import Governed, GovernorConfig
from agentrt.resources.learned import Learner, Observation, command_kind, tool_name

__all__ = ["Ledger"]

log = logging.getLogger(__name__)


class Ledger:
    """Learns from calls and writes them down, as the configuration says."""

    def __init__(self, config: GovernorConfig) -> None:
        self.learner = Learner()
        self._config = config

    def enter(self, governed: Governed, ending: Ending, feedback: Feedback) -> None:
        """A call has ended."""
        if self._config.learn and ending.peak_memory is not None:
            self._learn(governed, ending.peak_memory, ending, feedback)
        if self._config.log is not None or self._config.on_call is not None:
            self._write(governed, ending, feedback)

    def _learn(self, governed: Governed, peak: int, ending: Ending, feedback: Feedback) -> None:
        command = governed.info.command
        seconds = max(0.0, ending.duration - feedback.frozen)
        complete = not (ending.oom_kills or ending.timed_out or ending.killed)
        used = Observation(peak, seconds, complete)
        kind, repository = command_kind(command), governed.info.repository
        self.learner.observe(tool_name(command), kind, repository, used)

    def _write(self, governed: Governed, ending: Ending, feedback: Feedback) -> None:
        line = record(
            feedback,
            wall=time.time(),
            pid=os.getpid(),
            cgroup=governed.cgroup,
            command=governed.info.command,
            ending=ending,
            hint=governed.info.hint,
        )
        if governed.seen is not None:
            line["events"] = dict(governed.seen.counts)
            line["connects"] = governed.seen.connects
        if self._config.on_call is not None:
            self._config.on_call(line)
        if self._config.log is not None:
            try:
                with open(self._config.log, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(line) + "\n")
            except OSError as error:
                log.warning("cannot write %s: %s", self._config.log, error)
