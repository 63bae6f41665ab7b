"""Mistakes in what is read and in queries."""

import re

from tests.workflows.test_lint_seed_base import (
    appended,
    changed,
    connections,
    guide_lines,
    headings,
    inside_sql,
    instruction_ends,
    number_of,
    operator,
    query_lines,
    section,
)

# Data flow


@operator("DF", "unused-parameter")
def placeholder_misspelt(clean):
    lines = guide_lines(clean)
    for at in instruction_ends(lines):
        if match := re.search(r"\{(\w{4,})\}", lines[at]):
            wrong = match[1][:-3] + match[1][-2] + match[1][-3] + match[1][-1] + "x"
            yield changed(lines, at, lines[at].replace(match[0], f"{{{wrong}}}")), at + 1


@operator("DF")
def placeholder_unknown(clean):
    yield from appended(clean, "Note {ticket_owner} in the report.")


@operator("DF")
def parameter_unused(clean):
    lines = guide_lines(clean)
    at = next(at for at, line in enumerate(lines) if line.startswith("- `"))
    yield changed(lines, at, f"- `shift` (string): who is on call\n{lines[at]}"), at + 1


@operator("DF", "unknown-source", "non-actionable-step", "unused-parameter", "threshold-mismatch")
def query_not_run(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        for at in section(lines, start, "Queries"):
            name = lines[at].split("`")[1]
            for use in section(lines, start, "Connections"):
                if re.search(rf"\b{name}\.", lines[use]) and " with " not in lines[at]:
                    yield changed(lines, at, None), use
                    break


@operator("DF")
def query_never_seen(clean):
    lines = guide_lines(clean)
    starts = headings(lines)
    for start in starts[1:]:
        for at in section(lines, start, "Queries"):
            name = lines[at].split("`")[1]
            body = section(lines, starts[0], "Instructions")[-1]
            text = f"{lines[body]}\nCompare it with `{name}`."
            yield changed(lines, body, text), body + 2


@operator("DF")
def result_of_a_later_step(clean):
    lines = guide_lines(clean)
    last = number_of(lines[headings(lines)[-1]])
    for start in headings(lines)[:-1]:
        body = section(lines, start, "Instructions")
        text = f"{lines[body[-1]]}\nUse the result of Step {last} for this."
        yield changed(lines, body[-1], text), body[-1] + 2


@operator("DF")
def reads_a_later_step(clean):
    lines = guide_lines(clean)
    last = number_of(lines[headings(lines)[-1]])
    for start in headings(lines)[:-1]:
        places = section(lines, start, "Connections")
        if not section(lines, start, "Policy"):
            text = f"{lines[places[-1]]}\n\n### Policy\n\n- reads: Step {last}"
            yield changed(lines, places[-1], text), places[-1] + 5


@operator("DF", "undeclared-placeholder", "missing-parameter", "hard-coded-parameter",
          "unknown-argument")  # fmt: skip
def parameter_not_declared(clean):
    lines = guide_lines(clean)
    places = [at for at, line in enumerate(lines) if re.match(r"- `\w+` \(", line)]
    for at in places:
        name = lines[at].split("`")[1]
        cut = changed(lines, at, None)
        used = [i for i, line in enumerate(cut) if f"{{{name}}}" in line]
        if used:
            yield cut, used[0] + 1


@operator("DF")
def column_misspelt(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"`\w+\((\w+)\.(\w+)\)"):
        sql = re.search(
            rf"\[query\.{match[1]}\](.*?)(?=\n\[query\.\w+\]\n|\Z)", clean.queries, re.S
        )
        if sql and "sql =" in sql[1]:
            wrong = lines[at].replace(f"{match[1]}.{match[2]}", f"{match[1]}.{match[2]}_total")
            yield changed(lines, at, wrong), at + 1


@operator("DF")
def argument_unknown(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        for at in section(lines, start, "Queries"):
            if " with " not in lines[at]:
                yield changed(lines, at, f"{lines[at]} with colour=red"), at + 1


# Database instructions


@operator("DI", "missing-placeholder", "unused-parameter")
def date_in_sql(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if match := re.search(
            r":(start_time|end_time|at|window_start|window_end|night)\b", lines[at]
        ):
            new = lines[at].replace(match[0], "'2026-03-01T10:00:00Z'")
            yield changed(lines, at, new), at + 1, True


@operator("DI")
def date_in_text(clean):
    yield from appended(clean, "Look at everything since 2026-03-01.")


@operator("DI", "missing-placeholder", "unused-parameter")
def value_in_sql(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if match := re.search(r"\b(\w+) = :\1\b", lines[at]):
            new = lines[at].replace(match[0], f"{match[1]} = 'blue'")
            yield changed(lines, at, new), at + 1, True


@operator("DI", "missing-placeholder", "unused-parameter", "wrong-dialect")
def clock_in_sql(clean):
    lines = query_lines(clean)
    sqlite = "postgres" not in clean.queries
    for at in inside_sql(lines):
        if match := re.search(r":(end_time|at|window_end|night)\b", lines[at]):
            new = lines[at].replace(match[0], "datetime('now')" if sqlite else "now()")
            yield changed(lines, at, new), at + 1, True


@operator("DI")
def chance_in_sql(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if match := re.search(r"ORDER BY [\w.]+", lines[at]):
            yield changed(lines, at, lines[at].replace(match[0], "ORDER BY random()")), at + 1, True


@operator("DI")
def comma_before_from(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if match := re.search(r"(?<=\w) FROM ", lines[at]):
            yield changed(lines, at, lines[at].replace(match[0], ", FROM ", 1)), at + 1, True
        elif lines[at].startswith("FROM ") and not lines[at - 1].endswith(","):
            new = changed(lines, at - 1, lines[at - 1] + ",")
            yield new, at + 1, True


@operator("DI")
def where_and(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if "WHERE " in lines[at]:
            yield changed(lines, at, lines[at].replace("WHERE ", "WHERE AND ", 1)), at + 1, True


@operator("DI")
def keyword_misspelt(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if lines[at].startswith("SELECT "):
            yield changed(lines, at, "SELCT " + lines[at][7:]), at + 1, True


@operator("DI", "unused-parameter")
def statement_writes(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if lines[at].startswith("SELECT "):
            yield changed(lines, at, "DELETE " + lines[at][7:]), at + 1, True


@operator("DI")
def no_source(clean):
    lines = query_lines(clean)
    for at, line in enumerate(lines):
        if line.startswith("source = "):
            yield changed(lines, at, None), at, True


@operator("DI")
def source_unknown(clean):
    lines = query_lines(clean)
    for at, line in enumerate(lines):
        if line.startswith("source = "):
            yield changed(lines, at, 'source = "elsewhere"'), at, True


@operator("DI")
def no_query_file(clean):
    lines = guide_lines(clean)
    at = next(at for at, line in enumerate(lines) if line.startswith("<!-- guide:"))
    first = next(at for at, line in enumerate(lines) if line == "### Queries") + 2
    yield changed(lines, at, None), first


@operator("DI")
def no_such_file(clean):
    lines = guide_lines(clean)
    at = next(at for at, line in enumerate(lines) if line.startswith("<!-- guide:"))
    yield changed(lines, at, lines[at].replace("queries.toml", "gone.toml")), at + 1


@operator("DI", "unknown-source", "unused-parameter")
def query_unknown(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        for at in section(lines, start, "Queries"):
            name = lines[at].split("`")[1]
            yield changed(lines, at, lines[at].replace(name, name + "_v2")), at + 1


@operator("DI")
def placeholder_quoted(clean):
    lines = query_lines(clean)
    for at in inside_sql(lines):
        if match := re.search(r"= (:\w+)", lines[at]):
            yield changed(lines, at, lines[at].replace(match[0], f"= '{match[1]}'")), at + 1, True


@operator("DI")
def other_dialect(clean):
    lines = query_lines(clean)
    sqlite = "postgres" not in clean.queries
    for at in inside_sql(lines):
        if match := re.search(r"^(?:WHERE|  AND) (\w+) = (:\w+)", lines[at]):
            new = (
                f"{match[1]} ILIKE {match[2]}" if sqlite else f"ifnull({match[1]}, '') = {match[2]}"
            )
            yield (
                changed(lines, at, lines[at].replace(f"{match[1]} = {match[2]}", new)),
                at + 1,
                True,
            )
