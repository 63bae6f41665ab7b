"""Triton's interpreter beside a newer numpy."""

from __future__ import annotations

from typing import Any

__all__ = ["mend_interpreter"]


def mend_interpreter() -> None:
    """Let Triton 3.6's interpreter run loops whose bounds are loaded; harmless where it can.

    It turns arrays of one number into ints, which numpy 2.4 refuses.
    """
    from triton.runtime import interpreter

    module: Any = interpreter
    before = module._patch_lang_tensor
    if getattr(before, "mended", False):
        return

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch.mended = True  # type: ignore[attr-defined]
    module._patch_lang_tensor = patch
