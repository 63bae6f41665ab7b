"""Mistakes of wording and of form: what each operator puts into a clean guide."""

import itertools
import re

from tests.workflows.test_lint_seed_base import (
    appended,
    changed,
    closing,
    connections,
    guide_lines,
    headings,
    instruction_ends,
    number_of,
    operator,
    section,
)

# Clarity and precision


@operator("CP")
def ambiguous_above(clean):
    yield from appended(clean, "Compare that with the above.")


@operator("CP")
def ambiguous_previous_step(clean):
    yield from appended(clean, "Do the same as in the previous step.")


@operator("CP")
def vague_connection(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"if ([^`:]+|`[^`]+`)(?=: Step)"):
        if "says `" not in lines[at]:
            yield changed(lines, at, lines[at].replace(match[1], "the error rate is high")), at + 1


@operator("CP")
def vague_connection_of_many(clean):
    lines = guide_lines(clean)
    for _, at, match in connections(lines, r"if ([^`:]+|`[^`]+`)(?=: Step)"):
        if "says `" not in lines[at]:
            text = "there are too many retries in the log"
            yield changed(lines, at, lines[at].replace(match[1], text)), at + 1


@operator("CP")
def vague_instruction(clean):
    yield from appended(clean, "If the load looks unusually heavy, tell the owners.")


@operator("CP", "unused-parameter")
def nothing_to_do(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        body = section(lines, start, "Instructions")
        if number_of(lines[start]) in closing(lines) and not section(lines, start, "Command"):
            yield changed(lines[: body[0] + 1] + lines[body[-1] + 1 :], body[0],
                          "This area belongs to the platform team."), body[0] + 1  # fmt: skip


@operator("CP", "unused-parameter")
def no_instructions(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        body = section(lines, start, "Instructions")
        yield lines[: body[0]] + lines[body[-1] + 1 :], start + 1


@operator("CP")
def title_twice(clean):
    lines = guide_lines(clean)
    starts = headings(lines)
    title = lines[starts[0]].partition(" - ")[2]
    for start in starts[1:]:
        yield changed(lines, start, f"{lines[start].partition(' - ')[0]} - {title}"), start + 1


@operator("CP")
def title_says_conclude(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        text = "\n".join(lines[at] for at in section(lines, start, "Connections"))
        if "end" not in text:
            new = f"{lines[start].partition(' - ')[0]} - Conclude: over"
            yield changed(lines, start, new), start + 1


@operator("CP")
def other_threshold(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        coded = " ".join(lines[at] for at in section(lines, start, "Connections"))
        numbers = set(re.findall(r"[<>]=? (\d+(?:\.\d+)?)", coded))
        for at in section(lines, start, "Instructions"):
            for number in sorted(numbers):
                before = rf"(?:than|above|at least|at most|limit is|to) {number}\b"
                after = rf"\b{number}(?= \w+ or more)"
                if re.search(f"{before}|{after}", lines[at], re.I):
                    other = str(int(float(number) * 7 + 3))
                    yield changed(lines, at, re.sub(rf"\b{number}\b", other, lines[at])), at + 1


# Presentation and structure


@operator("PS")
def no_title(clean):
    yield guide_lines(clean)[1:], 1


@operator("PS")
def heading_colon(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        yield changed(lines, start, lines[start].replace(" - ", ": ", 1)), start + 1


@operator("PS")
def heading_tight(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        yield changed(lines, start, lines[start].replace("## Step", "##step", 1)), start + 1


@operator("PS", "missing-step", "unreachable-step", "wrong-source", "cycle", "no-path-to-end",
          "unknown-source", "missing-connection")  # fmt: skip
def number_twice(clean):
    lines = guide_lines(clean)
    starts = headings(lines)
    for before, start in itertools.pairwise(starts):
        number = number_of(lines[before])
        new = lines[start].replace(f"Step {number_of(lines[start])} ", f"Step {number} ")
        yield changed(lines, start, new), start + 1


@operator("PS")
def number_left_out(clean):
    lines = guide_lines(clean)
    start = headings(lines)[-1]
    number = number_of(lines[start])
    far = str(int(number) + 7)
    new = [re.sub(rf"\bStep {number}\b", f"Step {far}", line) for line in lines]
    if not any("Steps" in line and number in line for line in lines):
        yield new, start + 1


@operator("PS")
def not_marked(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        places = section(lines, start, "Connections")
        marker = next(
            (at for at in range(places[-1], min(len(lines), places[-1] + 12))
             if lines[at].startswith("<!-- Reaches")), None)  # fmt: skip
        if marker and lines[places[-1]] == "- end":
            yield changed(lines, marker, None), places[-1] + 1


@operator("PS")
def marked_and_leads_on(clean):
    lines = guide_lines(clean)
    for start in headings(lines):
        places = section(lines, start, "Connections")
        if places and all("end" not in lines[at] for at in places):
            text = f"{lines[places[-1]]}\n\n<!-- Reaches A Final Conclusion: All is known. -->"
            yield changed(lines, places[-1], text), places[-1] + 3


@operator("PS")
def text_breaks_off(clean):
    lines = guide_lines(clean)
    for at in instruction_ends(lines):
        yield changed(lines, at, f"{lines[at]} After that, look for the"), at + 1


@operator("PS")
def section_misspelt(clean):
    lines = guide_lines(clean)
    for at, line in enumerate(lines):
        if line == "### Instructions":
            yield changed(lines, at, "### Instrucions"), at + 1


@operator("PS")
def no_section(clean):
    lines = guide_lines(clean)
    for at, line in enumerate(lines):
        if line == "### Instructions":
            yield changed(lines, at, None), at + 2


@operator("PS", "missing-action", "dead-end", "unreachable-step", "implicit-end",
          "unmarked-termination", "no-path-to-end", "unused-parameter",
          "unknown-source")  # fmt: skip
def block_not_closed(clean):
    lines = guide_lines(clean)
    at = list(instruction_ends(lines))[-1]
    yield changed(lines, at, f"{lines[at]}\n```"), at + 2


@operator("PS", "unreachable-step", "missing-step", "no-path-to-end")
def comment_not_closed(clean):
    lines = guide_lines(clean)
    at = max(at for at, line in enumerate(lines) if line.startswith("<!-- Reaches"))
    yield changed(lines, at, lines[at].replace(" -->", "")), at + 1
