"""Mistakes in what leads where."""

import re

from tests.workflows.test_lint_seed_base import (
    appended,
    changed,
    closing,
    connections,
    guide_lines,
    headings,
    number_of,
    operator,
    section,
)

# Control flow


@operator("CF", "unreachable-step", "no-path-to-end", "unknown-source", "wrong-source")
def target_missing(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"Step [\d.]+$"):
        yield changed(lines, at, lines[at].replace(match[0], "Step 99")), at + 1


@operator("CF", "unreachable-step", "wrong-source")
def no_otherwise(clean):
    lines = guide_lines(clean)
    for _, at, _ in connections(lines, r"^- otherwise: Step"):
        yield changed(lines, at, None), at


@operator("CF", "unreachable-step", "no-path-to-end", "order-claim", "wrong-source",
          "unknown-source", "parallel-claim", "overlapping-conditions")  # fmt: skip
def no_connections(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        places = section(lines, start, "Connections")
        if places and "end" not in lines[places[-1]] and len(places) < 3:
            yield lines[: places[0] - 2] + lines[places[-1] + 1 :], start + 1


@operator("CF")
def orphan_step(clean):
    lines = guide_lines(clean)
    number = max(int(number_of(lines[at]).split(".")[0]) for at in headings(lines)) + 1
    text = (
        f"\n## Step {number} - Look elsewhere\n\n### Instructions\n\nAsk the team that knows."
        "\n\n### Connections\n\n- end\n\n<!-- Reaches A Final Conclusion: The team knows. -->"
    )
    yield lines + text.splitlines(), len(lines) + 2


@operator("CF", "unreachable-step", "unknown-source", "wrong-source", "parallel-claim")
def goes_round(clean):
    lines = guide_lines(clean)
    for start, at, match in connections(lines, r"^- (?:otherwise: )?(Step [\d.]+)$"):
        if number_of(lines[start]) != "1":
            yield changed(lines, at, lines[at].replace(match[1], "Step 1")), at + 1


@operator("CF")
def connection_twice(clean):
    lines = guide_lines(clean)
    for _, at, _ in connections(lines, r"Step"):
        yield changed(lines, at, f"{lines[at]}\n{lines[at]}"), at + 2


@operator("CF")
def sends_to_no_step(clean):
    yield from appended(clean, "Proceed to Step 77 when you are done.")


@operator("CF")
def sends_elsewhere(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        body = section(lines, start, "Instructions")
        targets = [lines[at] for at in section(lines, start, "Connections")]
        if not any(re.search(r"Step 1$", text) for text in targets) and body:
            text = f"{lines[body[-1]]}\nGo back to Step 1 if a probe fails."
            yield changed(lines, body[-1], text), body[-1] + 2


@operator("CF")
def not_parallel(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        body = section(lines, start, "Instructions")
        if len([at for at in section(lines, start, "Connections") if "if" in lines[at]]) == 1:
            text = f"{lines[body[-1]]}\nRun the next two checks in parallel."
            yield changed(lines, body[-1], text), body[-1] + 2


@operator("CF")
def not_after(clean):
    lines = guide_lines(clean)
    last = number_of(lines[headings(lines)[-1]])
    for start in headings(lines)[:-1]:
        body = section(lines, start, "Instructions")
        text = f"{lines[body[-1]]}\nStart after Step {last} has finished."
        yield changed(lines, body[-1], text), body[-1] + 2


@operator("CF")
def predicate_unreadable(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"(?<=if `)[^`]+"):
        yield changed(lines, at, lines[at].replace(match[0], match[0] + " and")), at + 1


@operator("CF")
def predicate_never_true(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"(?<=if `)([^`<>=]+) [<>]=? (\d+)"):
        if " and " not in lines[at] and " or " not in lines[at]:
            never = f"{match[1]} > {int(match[2]) + 5} and {match[1]} < {match[2]}"
            yield changed(lines, at, lines[at].replace(match[0], never)), at + 1


@operator("CF", "unreachable-step")
def predicates_overlap(clean):
    lines = guide_lines(clean)
    for start, _, match in connections(lines, r"^- if `([^`]+) > (\d+)`: (Step \d+)$"):
        places = section(lines, start, "Connections")
        other = [place for place in places if "otherwise: Step" in lines[place]]
        if other and " and " not in match[1]:
            where = lines[other[0]].rpartition(": ")[2]
            new = f"- if `{match[1]} > {int(match[2]) // 2}`: {where}"
            yield changed(lines, other[0], new), other[0] + 1


@operator("CF")
def otherwise_twice(clean):
    lines = guide_lines(clean)
    ends = sorted(closing(lines))
    for start, at, _ in connections(lines, r"^- otherwise: (Step \d+)$"):
        spare = [
            f"Step {number}"
            for number in ends
            if all(f"Step {number}" not in lines[a] for a in section(lines, start, "Connections"))
        ]
        if spare:
            yield changed(lines, at, f"{lines[at]}\n- otherwise: {spare[0]}"), at + 2


@operator("CF")
def end_not_connected(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        places = section(lines, start, "Connections")
        if [lines[at] for at in places] == ["- end"]:
            cut = lines[: places[0] - 2] + lines[places[0] + 1 :]
            marker = next(at for at in range(start, len(cut)) if cut[at].startswith("<!-- Reaches"))
            yield cut, marker + 1
