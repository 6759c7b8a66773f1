"""Pictures and boxes turned as the EXIF orientation says, for laws about coordinates."""

from __future__ import annotations

from collections.abc import Callable

from loraline.data.boxes import Box, Point, Size

TURNS: dict[int, Callable[[float, float], Point]] = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
"""Where a point of a stored image is shown, by the EXIF orientation (EXIF 3.0, tag 0x0112)."""

BACK = {**{orientation: orientation for orientation in TURNS}, 6: 8, 8: 6}
"""The orientation that undoes one."""


def upright_size(stored: Size, orientation: int) -> Size:
    """Size of an image as it is shown; orientations from 5 on swap its sides."""
    return (stored[1], stored[0]) if orientation >= 5 else stored


def turned(box: Box, orientation: int) -> Box:
    """Where a box of the stored image, in shares, lies in the image as it is shown."""
    first, second = TURNS[orientation](*box[:2]), TURNS[orientation](*box[2:])
    (left, right), (top, bottom) = sorted((first[0], second[0])), sorted((first[1], second[1]))
    return left, top, right, bottom


def turned_back(box: Box, orientation: int) -> Box:
    """Where a box of the image as it is shown, in shares, lies in the stored image."""
    return turned(box, BACK[orientation])
