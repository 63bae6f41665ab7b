"""Virtual time: a clock, what a step costs, and an event loop around the real scheduler.

Nothing here knows policies or pages: the scheduler and the page cache are the ones that serve live.
"""
