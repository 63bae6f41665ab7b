"""The scheduler's gauges and counters, read off its book."""

from __future__ import annotations

from agentrt.scheduling.book import Book
from agentrt.scheduling.plan import SchedulerStatistics

__all__ = ["figures"]


def figures(book: Book) -> SchedulerStatistics:
    """Return the figures as of now."""
    counts, counters, pins = book.kv.statistics(), book.counters, book.pins
    copies, ahead = book.transfers, book.prefetcher
    return SchedulerStatistics(
        running=len(book.running),
        waiting=len(book.waiting),
        programs=len(book.programs),
        pins=len(pins),
        pages_total=counts.total,
        pages_free=counts.free,
        pages_cached=counts.cached,
        pages_leased=counts.leased,
        pages_pinned=min(pins.pages, counts.leased),
        page_size=book.kv.page_size,
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        prefilled_tokens=counters.prefilled_tokens,
        output_tokens=counters.output_tokens,
        preemptions=counters.preemptions,
        steps=counters.steps,
        turns_finished=counters.turns_finished,
        pins_handed_off=pins.outcomes["handed_off"],
        pins_expired=pins.outcomes["expired"],
        pins_broken=pins.outcomes["broken"],
        pins_final=pins.outcomes["final"],
        longest_wait=counters.longest_wait,
        transfers=0 if copies is None else len(copies),
        loaded_tokens=0 if copies is None else copies.loaded_tokens,
        stored_tokens=0 if copies is None else copies.stored_tokens,
        fetched_tokens=0 if copies is None else copies.fetched_tokens,
        prefetched_tokens=0 if ahead is None else ahead.pages * book.kv.page_size,
        opened=len(book.opened),
        streamed_tokens=book.opened.tokens,
        drafted_tokens=counters.drafted_tokens,
        accepted_tokens=counters.accepted_tokens,
    )
