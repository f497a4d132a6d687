"""Reads the notes of a MIDI file: (start, number) with starts in whole notes."""

from __future__ import annotations

from fractions import Fraction


def notes(data: bytes) -> list[tuple[Fraction, int]]:
    """The notes of all tracks in order of time."""
    ticks_per_quarter = int.from_bytes(data[12:14], "big")
    found: list[tuple[Fraction, int]] = []
    at = 14
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        found += _track(data[at + 8 : at + 8 + size], 4 * ticks_per_quarter)
        at += 8 + size
    return sorted(found)


def _track(data: bytes, whole: int) -> list[tuple[Fraction, int]]:
    found = []
    at = time = status = 0
    while at < len(data):
        delta, at = _number(data, at)
        time += delta
        if data[at] & 0x80:
            status, at = data[at], at + 1
        if status >= 0xF0:
            at += status == 0xFF
            size, at = _number(data, at)
            at += size
            continue
        if status >> 4 == 9 and data[at + 1]:
            found.append((Fraction(time, whole), data[at]))
        at += 1 if status >> 4 in (0xC, 0xD) else 2
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    while True:
        value = value << 7 | data[at] & 0x7F
        at += 1
        if data[at - 1] < 0x80:
            return value, at
