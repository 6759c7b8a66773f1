"""Whether an answer ends in a repetition: the sign of a model that no longer reads its image."""

from __future__ import annotations

TAIL = 4096
"""Characters at the end that are looked at."""

LONGEST_PATTERN = 1024
LEAST_TIMES = 8
LEAST_CHARACTERS = 40

SHORT_PATTERN, LEAST_OF_SHORT = 4, 200
"""Patterns of fewer characters than this need a longer run: dotted lines are no loops."""


def ends_in_loop(text: str) -> bool:
    """Whether the end repeats one pattern eight times or more.

    By the Z function of the reversed tail (Gusfield 1997, 1.3): `runs[p]` characters from the end
    are the same as those p further in, so `runs[p] + p` have the period p. Linear in the tail.
    """
    tail = text.rstrip()[-TAIL:][::-1]
    runs = z_function(tail)
    for period in range(1, min(LONGEST_PATTERN, len(tail) // 2) + 1):
        length = runs[period] + period
        least = LEAST_OF_SHORT if period < SHORT_PATTERN else LEAST_CHARACTERS
        if length >= max(least, period * LEAST_TIMES):
            return True
    return False


def z_function(text: str) -> list[int]:
    """For each place the length of the longest common prefix of the text and its rest there."""
    lengths = [0] * len(text)
    left = right = 0
    for place in range(1, len(text)):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while place + length < len(text) and text[length] == text[place + length]:
            length += 1
        if place + length > right:
            left, right = place, place + length
        lengths[place] = length
    return lengths
