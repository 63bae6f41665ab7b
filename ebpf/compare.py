"""Says whether the shipped BPF objects are what their sources give; used by the Makefile.

    compare.py record DIR COMPILER    write DIR/BUILT: the compiler, and a digest of every file
    compare.py compare SHIPPED REBUILT

The sources must be those that the shipped objects were built from (by digest). Built by the same
compiler, the objects must be equal to the byte. Another compiler gives other instructions: then
what an object offers must be equal, which is its sections (the program types and where they
attach) with their symbols, and this is said.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = "BUILT"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sources() -> dict[str, str]:
    files = [*HERE.glob("*.bpf.c"), *HERE.glob("*.h"), HERE / "Makefile"]
    return {file.name: digest(file) for file in sorted(files)}


def objects(directory: Path) -> dict[str, str]:
    return {file.name: digest(file) for file in sorted(directory.glob("*.bpf.o"))}


def record(directory: Path, compiler: str) -> None:
    text = {"compiler": compiler, "sources": sources(), "objects": objects(directory)}
    (directory / BUILT).write_text(json.dumps(text, indent=1) + "\n")


def sections(file: Path) -> dict[str, list[str]]:
    """Section names of an ELF object, each with the names of the symbols defined in it."""
    data = file.read_bytes()
    offset, size, count, names = struct.unpack_from("<Q10xHHH", data, 0x28)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]

    def text(table: int, at: int) -> str:
        start = headers[table][4] + at
        return data[start : data.index(b"\0", start)].decode()

    found: dict[str, list[str]] = {text(names, header[0]): [] for header in headers}
    for header in headers:
        if header[1] != 2:  # SHT_SYMTAB
            continue
        for at in range(header[4], header[4] + header[5], 24):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            # Global symbols only: labels within functions differ between compilers.
            if info >> 4 and 0 < section < count:
                found[text(names, headers[section][0])].append(text(header[6], name))
    generated = (".rel", ".BTF", ".strtab", ".symtab", ".llvm", ".debug", ".rodata", ".text")
    return {k: sorted(v) for k, v in found.items() if k and not k.startswith(generated)}


def compare(shipped: Path, rebuilt: Path) -> list[str]:
    """What is wrong with the shipped objects; nothing when all is well."""
    old, new = (json.loads((where / BUILT).read_text()) for where in (shipped, rebuilt))
    remedy = "run make -C ebpf"
    wrong = [
        f"{name} has changed since the objects were built: {remedy}"
        for name in sorted(old["sources"].keys() | new["sources"].keys())
        if old["sources"].get(name) != new["sources"].get(name)
    ]
    if objects(shipped) != old["objects"] or old["objects"].keys() != new["objects"].keys():
        return [*wrong, f"the objects are not those that {BUILT} names: {remedy}"]
    same = old["compiler"] == new["compiler"]
    for name in old["objects"]:
        if same and old["objects"][name] != new["objects"][name]:
            wrong.append(f"{name} differs from its sources' build: {remedy}")
        elif not same and sections(shipped / name) != sections(rebuilt / name):
            wrong.append(f"{name} offers other programs than its sources: {remedy}")
    how = "equal to the byte" if same else f"alike in programs and maps ({new['compiler']})"
    if not wrong:
        sys.stdout.write(f"{len(old['objects'])} objects, built by {old['compiler']}: {how}\n")
    return wrong


def main(arguments: list[str]) -> int:
    if arguments[0] == "record":
        record(Path(arguments[1]), arguments[2])
        return 0
    wrong = compare(Path(arguments[1]), Path(arguments[2]))
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
