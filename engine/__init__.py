"""The embedded torch engine, imported as ``agentrt.engine``.

It must not know programs' tools, sandboxes, HTTP or configuration files: of agentrt it imports only
the errors and the plan types.
"""
