"""Triton's interpreter beside a newer numpy, and somewhat faster."""

from __future__ import annotations

from typing import Any

__all__ = ["mend_interpreter"]


def mend_interpreter() -> None:
    """Let Triton 3.6's interpreter run loops whose bounds are loaded; harmless where it can.

    It turns arrays of one number into ints, which numpy 2.4 refuses. And it patches the language
    again for every function that a kernel calls, sums included, which took a third of all time.
    """
    from triton.runtime import interpreter

    module: Any = interpreter
    patch_tensor, patch_language = module._patch_lang_tensor, module._patch_lang
    if getattr(patch_tensor, "mended", False):
        return

    def tensor_patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def language_patched(function: Any) -> Any:
        if hasattr(module.tl.tensor, "__index__"):  # as only a patched one has
            return module._LangPatchScope()
        scope = patch_language(function)
        # Triton's own functions, sums and the like, know the language by its other name.
        scope._changes += patch_language(module.tl.sum.fn)._changes
        return scope

    tensor_patched.mended = True  # type: ignore[attr-defined]
    module._patch_lang_tensor = tensor_patched
    module._patch_lang = language_patched
