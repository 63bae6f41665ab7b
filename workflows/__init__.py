"""Troubleshooting guides as DAGs, imported as ``agentrt.workflows``.

Nothing is implemented here yet; ``ARCHITECTURE.md`` says what stands.
"""
