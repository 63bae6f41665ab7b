"""Text for training a tokenizer: code, shell sessions and prose, all composed from templates.

Nothing is read from anywhere, and the only randomness is ``Random.random``, whose sequence Python
guarantees: the same text comes out everywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["corpus"]

_ROUNDS = 3000
_MARK = re.compile("@([a-z]+)@")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WORDS: Mapping[str, Sequence[str]] = {
    "verb": _words("""
        read write parse load store find count merge split check build close open send receive
        update remove create render format validate compute resolve schedule cancel collect compare
        convert decode encode filter flush handle insert join list lock match move print push query
        raise replace report reset retry return run scan select serve sort start stop test track
        install import export commit fetch
    """),
    "noun": _words("""
        account address agent archive batch block branch buffer cache channel character child client
        clock column command commit config connection container context counter cursor database date
        deadline device directory document edge entry error event field file filter folder function
        graph group handler header history image index input interval item key label language layer
        limit line lock log loop machine member memory message method model module name network node
        number object offset option order output package page parent parser part patch path pattern
        pipe plan point policy pool port prefix process program project prompt python query queue
        range record region registry release repository request resource response result root route
        row rule sample scheduler schema scope script section sequence server service session set
        shape signal size slot socket source span stack stage state step stream string table target
        task tenant text thread time token tool trace tree turn type unit user value vector version
        view weight window word worker
    """),
    "adjective": _words("""
        active atomic available broken cached clean common complete concurrent correct current
        default different empty equal exact expected external failed fast final first fixed free
        full general global hidden important internal invalid large last late local long missing
        mutable nested new normal old open optional original partial pending private public quick
        random ready recent safe second shared short simple single slow small sorted special stable
        stale static strict temporary unknown unused useful valid visible whole wrong
    """),
    "glue": _words("""
        the a this that each every no another its our your because when before after while until
        unless where which there then now still also only never always often again instead therefore
        should must can may will would could does not is are was were has have had been be it we
        they you to from with without into over under between through about for of in on at by as
        and or but if so than very more most less enough almost already together
    """),
    "ending": ("", "s", "ed", "ing"),
    "stop": (".", ".", ",", ":", "?", "!"),
    "kind": ("int", "str", "bool", "float", "bytes", "None", "list[int]", "dict[str, int]", "Path"),
    "suffix": (".py", ".md", ".c", ".h", ".sh", ".toml", ".json", ".txt", ".yaml", ".rs", ".go"),
    "operator": ("==", "!=", "<", ">=", "in", "is not", "and", "or"),
    "leave": ("return", "yield", "await", "raise"),
    "exception": ("ValueError", "KeyError", "OSError", "TimeoutError", "IndexError"),
    "verdict": ("PASSED", "FAILED", "SKIPPED", "ERROR"),
    "truth": ("true", "false", "null"),
    "syllable": _words("""
        ba be bo da de do ka ke ko la le lo ma me mo na ne no ra re ro sa se so ta te to tion ing er
        ment al ive able ous ist ify ize ness ed ly an en on in un re con pre
    """),
}

_PHRASES: Mapping[str, Sequence[str]] = {
    "name": ("@verb@_@noun@",) * 4 + ("@noun@",) * 4 + ("@syllable@@syllable@@syllable@",),
    "path": ("@noun@/@name@@suffix@", "@noun@/@noun@/@name@@suffix@", "@name@@suffix@"),
    "clause": ("@glue@ @adjective@ @noun@", "@glue@ @adjective@ @noun@ @verb@@ending@"),
    "sentence": (
        "@clause@ @clause@ @clause@@stop@",
        "The @noun@ @clause@ @clause@ @clause@@stop@",
        "It @verb@s @clause@ @clause@@stop@",
        "We @verb@ @clause@ @clause@@stop@",
    ),
}

_TEXTS: Sequence[str] = (
    "@sentence@ @sentence@ @sentence@ @sentence@\n",
    '''def @name@(@noun@: @kind@, @noun@: @kind@ = @digits@) -> @kind@:
    """@sentence@"""
    for index, @noun@ in enumerate(@noun@):
        if @noun@[index] @operator@ self.@name@:
            @leave@ @name@(@noun@)
        @name@ += len(@noun@) - @digits@
    return {key: value for key, value in @noun@.items()}

''',
    """$ cd @path@ && ls -la
$ grep -rn '@name@' @path@ | head -n @digits@
$ git diff --stat HEAD~1
$ python -m pytest @path@ -q -k @name@
$ sed -i 's/@name@/@name@/' @path@
$ for file in *@suffix@; do echo "$file"; done > /tmp/@name@.log 2>&1
$ export @upper@_@upper@=@digits@
$ cat <<'EOF' > @path@
@sentence@
EOF
""",
    """{"name": "@name@", "arguments": {"@noun@": "@path@", "@noun@": @digits@, "ok": @truth@}}
I will @verb@ the @noun@ in `@path@` first. @sentence@
```bash
@verb@ --@noun@ @path@
```
""",
    """from __future__ import annotations

import @noun@
from @noun@.@noun@ import @name@, @name@


class @title@@title@:
    def __init__(self, @noun@: @kind@) -> None:
        self.@name@ = @name@
        super().__init__()

    @property
    def @name@(self) -> @kind@:
        try:
            return self._@name@
        except @exception@ as error:
            raise RuntimeError(f"@noun@ {error}") from error


""",
    """@path@::test_@name@ @verdict@ [@digits@%]
Traceback (most recent call last):
  File "@path@", line @digits@, in test_@name@
    assert @name@(@digits@) == @digits@
AssertionError: expected @digits@, got @digits@
====== @digits@ failed, @digits@ passed in 0.@digits@s ======
""",
    "@sentence@ @sentence@ @sentence@\n",
    """diff --git a/@path@ b/@path@
@@ -@digits@,7 +@digits@,8 @@
-    @name@ = @name@[@digits@:]
+    @name@ = @name@.@name@(@digits@)
""",
    """#include <@noun@.h>

static int @name@(const char *@noun@, size_t @noun@)
{
    if (!@noun@) return -1;
    printf("%s: %d\\n", @name@, @name@->@noun@);
    free(@noun@);
    return 0;
}
""",
)


def _expand(text: str, rng: random.Random) -> str:
    """Replace every ``@mark@``, and the marks in what replaced it, by a choice of the generator."""

    def choose(found: re.Match[str]) -> str:
        mark = found[1]
        if mark == "digits":
            return str(int(rng.random() * 1000))
        if mark in ("upper", "title"):
            noun = _expand("@noun@", rng)
            return noun.upper() if mark == "upper" else noun.title()
        if mark in _PHRASES:
            return _expand(_pick(_PHRASES[mark], rng), rng)
        return _pick(_WORDS[mark], rng) if mark in _WORDS else found[0]

    return _MARK.sub(choose, text)


def _pick(choices: Sequence[str], rng: random.Random) -> str:
    return choices[int(rng.random() * len(choices))]


def corpus() -> Iterator[str]:
    """Yield the training text piece by piece: about one megabyte, always the same."""
    rng = random.Random(20240229)
    for number in range(_ROUNDS):
        yield _expand(_TEXTS[number % len(_TEXTS)], rng)
