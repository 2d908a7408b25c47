# SPDX-License-Identifier: Apache-2.0
"""Bytes, seconds and FLOPs: multiply by a unit on the way in, divide on the way out."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

KB = 1_000
MB = 1_000_000
GB = 1_000_000_000
TERA = 1_000_000_000_000


def format_bytes(size_bytes: float) -> str:
    """Render a number of bytes in the largest binary unit that keeps it above one, e.g. `23.64 GiB`."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if abs(size_bytes) >= unit:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes:.0f} B"


def parse_bytes(text: str) -> int:
    """Read `24GiB`, `40 GB`, `512MiB` or a plain number of bytes.

    Raises `ValueError` when the text is not a positive number with one of those units.
    """
    units = {"GIB": GiB, "MIB": MiB, "KIB": KiB, "GB": GB, "MB": MB, "KB": KB, "B": 1, "": 1}
    stripped = text.strip()
    number = stripped.rstrip("BbGgIiKkMm ")
    unit = stripped[len(number) :].strip().upper()
    try:
        size_bytes = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size_bytes = 0
    if size_bytes <= 0:
        raise ValueError(f"cannot read {text!r} as a size: expected a positive number with B, KiB, MiB, GiB, KB, MB or GB, e.g. 24GiB")
    return size_bytes
