"""Small files of sysfs, read by those who expect that any of them may be missing."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def line(path: Path) -> str | None:
    """The text of a file without surrounding blanks; None where it cannot be read: sysfs says by an
    error that a sensor sleeps."""
    try:
        return path.read_text(encoding="utf-8").strip("\0 \t\r\n")
    except (OSError, UnicodeDecodeError):
        return None


def number(path: Path) -> float | None:
    """The integer in a file; None where there is none."""
    text = line(path)
    try:
        return float(int(text)) if text else None
    except ValueError:
        return None


def board(root: Path) -> str:
    """What the device tree calls this machine; empty where there is none."""
    return line(root / "proc/device-tree/model") or ""
