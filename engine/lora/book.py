"""The adapters that a model is served with, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from agentrt.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter

__all__ = ["AdapterBook"]


class AdapterBook:
    """Adapters by name. Any thread may ask; a turn keeps the adapter that it began with.

    Args:
        adapters: those that are there from the start.
    """

    def __init__(self, adapters: Iterable[Adapter] = ()) -> None:
        self._adapters: Mapping[str, Adapter] = {each.name: each for each in adapters}

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._adapters)

    def find(self, name: str) -> Adapter:
        """Return an adapter.

        Raises:
            InvalidRequest: there is none of that name; names those that there are.
        """
        found = self._adapters.get(name)
        if found is None:
            there = f"Use one of {', '.join(self.names)}" if self._adapters else "There are none"
            raise InvalidRequest(
                f"There is no adapter {name!r}.",
                remedy=f"{there}, or load it: --lora {name}=DIR.",
            )
        return found

    def add(self, adapter: Adapter) -> None:
        """Offer another adapter from now on.

        Raises:
            ConfigError: its name is taken.
        """
        if adapter.name in self._adapters:
            raise ConfigError(
                f"There is an adapter {adapter.name!r} already.", remedy="Choose another name."
            )
        # Replaced whole: whoever reads it meanwhile sees the one or the other.
        self._adapters = {**self._adapters, adapter.name: adapter}

    def remove(self, name: str) -> None:
        """Offer an adapter no longer; turns that have it go on.

        Raises:
            InvalidRequest: there is none of that name.
        """
        self.find(name)
        self._adapters = {key: each for key, each in self._adapters.items() if key != name}
