"""Small files of sysfs, any of which may be missing."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def line(path: Path) -> str | None:
    """Returns the text of a file without surrounding blanks; None if it cannot be read.

    sysfs gives an error for a sensor that sleeps.
    """
    try:
        return path.read_text(encoding="utf-8").strip("\0 \t\r\n")
    except (OSError, UnicodeDecodeError):
        return None


def number(path: Path) -> float | None:
    """Returns the integer in a file; None if there is none."""
    text = line(path)
    try:
        return float(int(text)) if text else None
    except ValueError:
        return None


def board(root: Path) -> str:
    """Returns the machine's name in the device tree; empty without a device tree."""
    return line(root / "proc/device-tree/model") or ""
