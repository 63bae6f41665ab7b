"""Pages of a list."""

from pager.pages import links, page, page_count

__all__ = ["links", "page", "page_count"]
