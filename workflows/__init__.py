"""Troubleshooting guides as DAGs, imported as ``agentrt.workflows``.

Guides are data (``guide.py``), a run is the fold of an event log (``events.py``, ``log.py``), and
what happens next is decided by a pure schedule (``schedule.py``). It must not know HTTP serving,
and loads the engine and the sandboxes only when a run needs them.
"""
