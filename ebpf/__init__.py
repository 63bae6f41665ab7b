"""BPF programs and their loader, imported as ``agentrt.ebpf``.

Nothing is implemented here yet; ``ARCHITECTURE.md`` says what stands.
"""
