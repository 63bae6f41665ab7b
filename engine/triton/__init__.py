"""Kernels of our own in Triton: attention over pages, the store into them, small operations.

Importing a module of this package needs Triton; nothing else of the engine does. They run on CUDA,
and on the CPU in Triton's interpreter (``TRITON_INTERPRET=1``), which is how they are tested. They
know shapes, pages and work lists; turns, programs and scheduling they do not.
"""
