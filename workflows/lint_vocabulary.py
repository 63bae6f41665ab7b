"""The word lists of the lint rules."""

from __future__ import annotations

__all__ = [
    "CHANGES",
    "CLOCK_CALLS",
    "CLOCK_WORDS",
    "DIALECTS",
    "NEEDS_RIGHT",
    "NO_LEFT",
    "NUMBER_WORDS",
    "VAGUE",
    "VERBS",
]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        _words("zero one two three four five six seven eight nine ten eleven twelve")
    )
}
"""Numbers that prose writes out, with their values."""

VAGUE = _words("""
    high low slow slower large big long short small bad poor heavy normal fine ok okay healthy
    unhealthy severe busy old fast good acceptable reasonable suspicious strange odd degraded wrong
    significant excessive elevated abnormal unusual substantial considerable overloaded higher lower
    larger longer bigger worse better deep
""")
"""Adjectives that decide nothing after "is"."""

VERBS = frozenset(
    _words("""
    add alert analyse analyze apply ask assign attach block build call cancel capture change check
    clear close collect compare compute conclude confirm connect contact copy count create cut
    decide decrease delete deploy determine diagnose disable do download drain drop enable ensure
    escalate estimate evaluate examine execute expand export fail fetch file fill filter find fix
    flag flush follow free get give go group halt hand hold identify ignore increase inform inspect
    investigate isolate judge keep kill leave limit list locate log look lower make mark measure
    merge mitigate monitor mount move name note notify observe open order page pause pick ping plot
    point post press prevent print proceed promote prove provide pull purge push put query raise
    read rebuild reboot recalculate recommend record redeploy reduce release reload remove renew
    repair repeat replace report request reset resize resolve restart restore resume retry return
    review revoke roll rotate route run save say scale schedule search see select send set show shut
    skip sort start stop submit sum summarise summarize suspend switch take tell terminate test
    throttle trace track transfer trigger try turn undo unmount update upgrade use validate verify
    visit wait warm watch weigh wire write
""")
)
"""Verbs that an instruction begins with."""

NEEDS_RIGHT = frozenset(_words("select from where and or not by having on join in like between as"))
"""SQL words that something must follow."""

NO_LEFT = frozenset(_words("from where group having order limit and or union on"))
"""SQL words that no operand can be."""

CLOCK_CALLS = frozenset(
    _words("""
    now random rand randomblob getdate sysdate newid gen_random_uuid uuid_generate_v4
    clock_timestamp statement_timestamp transaction_timestamp timeofday getutcdate
""")
)
"""SQL functions that answer differently each time."""

CLOCK_WORDS = frozenset(
    _words("current_timestamp current_date current_time localtimestamp localtime sysdate")
)
"""The same without parentheses."""

CHANGES = frozenset(
    _words("insert update delete create drop alter pragma attach replace begin merge truncate")
)
"""SQL statements that are no query."""

DIALECTS = {
    "sqlite": frozenset(_words("strftime julianday ifnull unixepoch json_each group_concat glob")),
    "postgres": frozenset(
        _words("""
        date_trunc to_char to_timestamp date_part string_agg array_agg generate_series
        percentile_cont extract ilike similar jsonb_each regexp_replace age
    """)
    ),
}
"""What only one kind of database knows."""
