"""A visitor's pictures, prepared to be shown or sent; a file's format follows from its content."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MOST_PIXELS = 64_000_000
LONGER_SIDE = 1600
"""Pixels of a picture beside its answer; a screen has about as many."""

THUMBNAIL = 96

DEEP = ("I", "F")
"""Beginnings of Pillow's modes of grey pictures with more than 8 bits, which it turns white."""


class Picture(NamedTuple):
    """A picture as a person sees it."""

    uri: str
    """`data:` and the picture, so that it has no address that another visitor could guess."""

    width: int
    height: int
    """Pixels of the upright original."""


class Unreadable(Exception):
    """The file is not a picture that can be shown."""


def upright(path: Path) -> Any:
    """The picture turned as its EXIF says, alpha on white, as the model sees it."""
    from PIL import Image, ImageOps

    try:
        picture = Image.open(path, formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise Unreadable(f"the picture has more than {MOST_PIXELS:,} pixels")
        if picture.mode.startswith(DEEP):
            raise Unreadable("the picture is grey and has more than 8 bits")
        turned = ImageOps.exif_transpose(picture)
        white = Image.new("RGB", turned.size, "white")
        rgba = turned.convert("RGBA")
        white.paste(rgba, mask=rgba.getchannel("A"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable("the file is no picture that can be shown") from error
    return white


def prepared(path: Path, longer_side: int = LONGER_SIDE) -> Picture:
    """A picture for the page; Unreadable for any other file."""
    picture = upright(path)
    width, height = picture.size
    picture.thumbnail((longer_side, longer_side))
    return Picture(as_uri(picture), width, height)


def as_uri(picture: Any) -> str:
    file = io.BytesIO()
    # Drawings and screenshots stay sharp; photos are a tenth of their size as JPEG.
    few = picture.getcolors(maxcolors=4096) is not None
    picture.save(file, "PNG" if few else "JPEG", **({} if few else {"quality": 88}))
    subtype = "png" if few else "jpeg"
    return f"data:image/{subtype};base64,{base64.b64encode(file.getvalue()).decode()}"


def sent(path: Path, megapixels: float, folder: Path) -> Path:
    """The file itself, or a smaller and upright copy within the folder if it has more megapixels.

    Each copy lies in a folder of its own, since several pictures may share a name.
    """
    picture = upright(path)
    share = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    if megapixels <= 0 or share >= 1:
        return path
    size = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
    smaller = Path(tempfile.mkdtemp(dir=folder), f"{path.stem}.png")
    picture.resize(size).save(smaller, "PNG")
    return smaller


def data_uri(path: Path) -> str:
    """The file's own bytes as the OpenAI interface takes them."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            mime = str(picture.get_format_mimetype())
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable("the file is no picture that can be sent") from error
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False
