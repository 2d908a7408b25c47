# SPDX-License-Identifier: Apache-2.0
"""What `make docs` adds to the pages of this folder: documents that lie elsewhere in the repository, and what is made from the code."""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

import bsmodel
from bsmodel.command import main
from bsmodel.command.documents import DOCUMENTS, schema
from bsmodel.units import GB, TERA, GiB

ROOT = Path(__file__).parent.parent
BROUGHT = {  # from the repository, to a place in the site
    "README.md": "overview.md",
    "CHANGELOG.md": "changes.md",
    "hardware/README.md": "hardware/README.md",
    "hardware/workspaces.toml": "hardware/workspaces.toml",
    "benchmarks/README.md": "benchmarks/README.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_MADE = re.compile(r"^<!-- (bsmodel .*|gpus|schemas) -->$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Bring along what lies elsewhere in the repository, and the pages of the gallery."""
    for source, place in BROUGHT.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, content in pages_of((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")):
        files.append(File.generated(config, f"gallery/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links within the repository into links within the site, and fill in what is made from the code."""
    place = page.file.src_uri
    source = next((source for source, brought in BROUGHT.items() if brought == place), f"docs/{place}")
    return _MADE.sub(lambda found: made(found[1]), _LINK.sub(lambda found: in_site(found[1], source, place), markdown))


def in_site(link: str, source: str, place: str) -> str:
    """The link in a file of the repository, as it is in the page that the file becomes."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    target = BROUGHT.get(target, target.removeprefix("docs/"))
    return posixpath.relpath(target, posixpath.dirname(place) or ".")


def pages_of(markdown: str) -> Iterator[tuple[str, str]]:
    """Name and content of every page that the commands of a document write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "benchmarks").symlink_to(ROOT / "benchmarks")
        for line in re.findall(r"^bsmodel .*--html.*$", markdown, re.M):
            program = [sys.executable, "-m", *shlex.split(line)]
            subprocess.run(program, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        for path in sorted(Path(folder).glob("*.html")):
            yield path.name, path.read_text(encoding="utf-8")


def made(what: str) -> str:
    """What stands in a page instead of a comment: the answer of a command, the table of cards, the tables of schemas."""
    match what:
        case "gpus":
            return table(("id", "name", "usable [GiB]", "capability", "GB/s", "fp16", "bf16", "USD an hour", "checked"), map(_card, bsmodel.Gpu.all()))
        case "schemas":
            return schemas()
        case _:
            return f"```text\n{printed(what)}```"


def printed(line: str) -> str:
    """What a command prints, in lines of at most 100 columns."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # whose letters are known, as those of a terminal
    with mock.patch.dict("os.environ", COLUMNS="100"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(shlex.split(line)[1:])
    out.seek(0)
    return out.read()


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    columns, cells = list(columns), [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    numbers = [all(re.fullmatch(r"[\d.,]+|-", row[place]) for row in cells) for place in range(len(columns))]
    lines = [columns, ["---:" if number else "---" for number in numbers], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _card(gpu: bsmodel.Gpu) -> tuple[str, ...]:
    source, rates = gpu.source_of("price_usd_per_hour"), (gpu.fp16_dense_flops_per_s, gpu.bf16_dense_flops_per_s)
    speed = f"{gpu.bandwidth_bytes_per_s / GB:,.0f}" if gpu.bandwidth_bytes_per_s else "-"
    price = (f"{gpu.price_usd_per_hour:.2f}", str(source.checked)) if gpu.price_usd_per_hour and source else ("-", "-")
    shown = (f"{rate / TERA:,.0f}" if rate else "-" for rate in rates)
    return f"`{gpu.id}`", gpu.name, f"{gpu.usable_bytes / GiB:.2f}", gpu.compute_capability, speed, *shown, *price


# -- schemas -------------------------------------------------------------------------------------------------------------------------------


def schemas() -> str:
    """The documents that commands answer with, each with its fields, and then what these are made of."""
    parts: dict[str, Any] = {}
    written = []
    for name in sorted(DOCUMENTS):
        document = json.loads(schema(name))
        parts |= document.pop("$defs", {})
        alternatives = [parts.pop(each["$ref"].rpartition("/")[2]) for each in document.get("anyOf", ())] or [document]
        written += [f"## {name}", *(line for each in alternatives for line in _fields(each))]
    written.append("## What they are made of")
    for name, part in sorted(parts.items()):
        written += [f"### {name} {{ #{_anchor(name)} }}", *_fields(part)]
    return "\n\n".join(written)


def _fields(part: dict[str, Any]) -> list[str]:
    """What a schema says of itself, and a table of its fields."""
    needed = part.get("required", ())
    rows = [
        (f"`{name}`" + ("" if name in needed else " (optional)"), _kind(field), field.get("description", ""))
        for name, field in part.get("properties", {}).items()
    ]
    said = any(row[2] for row in rows)
    columns = ("field", "type", "meaning") if said else ("field", "type")
    return [part.get("description", ""), table(columns, [row[: len(columns)] for row in rows])]


def _kind(field: dict[str, Any]) -> str:
    """The type of a field, in words."""
    match field:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{_anchor(name)})"
        case {"anyOf": kinds}:
            return " or ".join(dict.fromkeys(map(_kind, kinds)))
        case {"enum": values}:
            return " or ".join(f'"{value}"' for value in values)
        case {"type": "array", "items": kind}:
            return f"list of {_kind(kind)}"
        case {"type": "object", "additionalProperties": dict(kind)}:
            return f"object of {_kind(kind)}"
        case _:
            return str(field.get("format") or field.get("type", "anything"))


def _anchor(name: str) -> str:
    return f"part-{name.lower().strip('_')}"
