#!/bin/sh
# Every case gets a fresh directory; prints one line a case and fails if any failed.
script=$(cd "$(dirname "$0")/.." && pwd)/rotate.sh
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
failed=0

check() { # check NAME WANT GOT
    if [ "$2" = "$3" ]; then
        echo "ok   $1"
    else
        echo "FAIL $1: want '$2', got '$3'"
        failed=1
    fi
}

fresh() { # fresh FILE...: an own directory with these files
    rm -rf "$work/dir"
    mkdir "$work/dir"
    for name in "$@"; do : >"$work/dir/$name"; done
}

left() { (cd "$work/dir" && for name in *; do [ -e "$name" ] && printf '%s|' "$name"; done); }

fresh 2024-01-01.bak 2024-02-01.bak 2024-03-01.bak 2024-04-01.bak 2024-05-01.bak
sh "$script" "$work/dir" 2 2>/dev/null
check "keeps the newest two" "2024-04-01.bak|2024-05-01.bak|" "$(left)"

fresh "2024-01-01 home.bak" "2024-02-01 office.bak" "2024-03-01 home.bak"
sh "$script" "$work/dir" 1 2>/dev/null
check "names with spaces" "2024-03-01 home.bak|" "$(left)"

fresh 2024-01-01.bak 2024-01-02.txt
sh "$script" "$work/dir" 3 2>/dev/null
check "fewer than kept, other files" "2024-01-01.bak|2024-01-02.txt|" "$(left)"

fresh notes.txt
sh "$script" "$work/dir" 1 2>/dev/null
check "no backups is fine" "0 notes.txt|" "$? $(left)"

fresh 2024-01-01.bak 2024-02-01.bak
(cd "$work/dir" && sh "$script" "$work/nowhere" 1 2>/dev/null)
code=$?
check "a wrong directory deletes nothing" "2024-01-01.bak|2024-02-01.bak|" "$(left)"
check "a wrong directory is an error" "yes" "$([ $code -ne 0 ] && echo yes || echo no)"

mkdir "$work/my backups"
: >"$work/my backups/2024-01-01.bak"
sh "$script" "$work/my backups" 0 2>/dev/null
check "directory with a space" "" "$(ls "$work/my backups")"

exit $failed
