"""The one parser of what clients say ahead: who calls, what follows, how urgent, how long to keep.

Pure, and knows no HTTP library. Every field is a row of ``table.FIELDS``; ``docs/hints.md`` is made
of the same rows. Whatever stands in a request, reading it never raises: what is malformed, unknown
or cannot be done is noted, counted by the server, and ignored.
"""

from agentrt.hints.read import Note, Outcome, Readings, read_hints
from agentrt.hints.table import FIELDS, Field, Target

__all__ = ["FIELDS", "Field", "Note", "Outcome", "Readings", "Target", "read_hints"]
