"""Images of a row: decoded once, and stored so that every reader shows them alike."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from loraline.data.checks import REPAIR, BadRow, Policy
from loraline.data.reading.contents import Media
from loraline.data.reading.media import Fetch, Limits, content_of, label, measure, over_limit

TYPES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif"),
}
"""Image types that are read, as Pillow names them, with the endings of their names. MPO is what
phones and stereo cameras write: a JPEG with more pictures after the first, which is the one. HEIF
is read with the extra `heic`, as its first picture."""

OPENED = [name for name in TYPES if name not in ("MPO", "HEIF")]
"""Pillow opens MPO as JPEG, and HEIF only where its reader is installed."""

NOT_READ = {
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"P1": "PBM",
    b"P2": "PGM",
    b"P3": "PPM",
    b"P4": "PBM",
    b"P5": "PGM",
    b"P6": "PPM",
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"DICM": "DICOM",
    b"\x93NUMPY": "a NumPy array",
    b"v/1\1": "OpenEXR",
    b"%!PS": "PostScript",
    b"qoif": "QOI",
    b"icns": "ICNS",
    b"DDS ": "DDS",
    b"\x01\xda": "SGI",
    b"\n\x05\x01": "PCX",
    b"#?RADIANCE": "Radiance HDR",
    b"FORM": "IFF",
    b"\x1f\x8b": "packed with gzip",
    b"PK\3\4": "a ZIP archive",
}
"""First bytes of whole pictures that are not read, with the names of their types."""

IN_PLACE_OF_PICTURES = {
    b"version https://git-lfs": (
        "media_missing",
        "is a pointer of Git LFS; `git lfs pull` fetches what it stands for",
    ),
    b"<!doctype html": ("media_broken", "is a page of HTML, as where its download failed"),
    b"<html": ("media_broken", "is a page of HTML, as where its download failed"),
}
"""First bytes of what comes in place of a picture, in small letters, with a check and a clause."""

BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)
"""Brands of files that begin with an ISO base media box, after its size and `ftyp`."""

DICOM_AT = 128
"""Bytes before the mark of a DICOM file."""

EIGHT_BITS = {"1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "RGBX", "RGBa", "La"}
"""Color modes of Pillow that become RGB as they are."""

DEEP = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
"""Color modes with more than eight bits: Pillow would cut their values off."""

PHOTOMETRIC, MIN_IS_WHITE = 262, 0
"""Tag of TIFF, and its value where the lowest value is white, as in many radiology exports."""

DNG_VERSION, SUBFILE_TYPE, REDUCED = 50706, 254, 1
"""Tags of TIFF, and the flag of the latter for a picture of reduced size (TIFF 6.0, DNG 1.7)."""

EXIF_ORIENTATION = 0x0112
"""Tag of the EXIF standard; 1 is upright."""


@dataclass(frozen=True)
class Picture:
    """An image that was decoded without error."""

    content: bytes
    source: bytes
    """SHA-256 of the image's file."""

    height: int
    width: int
    near: int
    """Perceptual hash, 64 bits."""


def load_image(
    medium: str | bytes,
    fetch: Fetch,
    limits: Limits,
    actions: Policy,
    flagged: list[str],
    window: tuple[float, float] | None = None,
) -> Picture:
    """Read and decode an image; its pixels are looked at once and forgotten.

    `window` gives the values that are black and white in a picture of more than eight bits.
    """
    import imagehash
    from PIL import Image, UnidentifiedImageError

    content = content_of(medium, fetch, limits, "image")
    opened = OPENED
    for begin, (check, clause) in IN_PLACE_OF_PICTURES.items():
        if content[:64].lstrip().lower().startswith(begin):
            raise BadRow(check, f"image {label(medium)} {clause}")
    if (unread := type_not_read(content)) == "HEIC":
        opened = [*opened, heif_reader(medium)]
    elif unread:
        remedy = "give its pages as PNG" if unread == "PDF" else "convert it to PNG or JPEG"
        raise BadRow(
            "media_format", f"image {label(medium)} is {unread}, which is not read; {remedy}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=opened)
        if image.format == "TIFF" and is_raw(image.tag_v2):
            raise BadRow(
                "media_format",
                f"image {label(medium)} is a camera's raw file, of which a preview would be read; "
                "convert it to PNG or JPEG",
            )
        measure("image", medium, image.width, image.height, limits)
        # Of these, Pillow opens the picture that the file itself calls the first.
        single = image.format in ("MPO", "HEIF")
        frames = 1 if single else getattr(image, "n_frames", 1)
        if frames > 1 and actions["media_frames"] != REPAIR:
            raise BadRow(
                "media_frames",
                f"image {label(medium)} has {frames} frames; give it as a video, or take the first "
                "with --on media_frames=repair",
            )
        if not single:
            image.seek(0)
        refuse_deep_color("image", medium, image, window)
        image.load()
        standard = standardized(image, window)
        near = int.from_bytes(packed(imagehash.phash(standard).hash), "big")
    except Image.DecompressionBombError:
        raise over_limit("image", medium, "far more pixels", limits.image_pixels) from None
    except UnidentifiedImageError as error:
        raise BadRow(
            "media_broken",
            f"image {label(medium)} cannot be decoded: it begins like no picture that is read; if "
            "it is one, convert it to PNG or JPEG",
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = str(error).partition(" <_io")[0][:80]
        raise BadRow(
            "media_broken", f"image {label(medium)} cannot be decoded: {reason}"
        ) from error
    ending = PurePosixPath(medium).suffix.lower() if isinstance(medium, str) else ""
    endings = {name for names in TYPES.values() for name in names}
    if ending in endings and ending not in TYPES[image.format or ""]:
        if actions["media_type"] != REPAIR:
            raise BadRow("media_type", f"image {label(medium)} is {image.format} by its content")
        flagged.append("media_type")
    source = hashlib.sha256(content).digest()
    # Nothing after this step reads HEIF.
    stored_anew = standard is not image or image.format == "HEIF"
    if stored_anew:
        if actions["appearance"] != REPAIR:
            raise BadRow(
                "appearance",
                f"image {label(medium)} is turned, partly transparent, HEIC, or deeper than 8 bits",
            )
        flagged.append("appearance")
    if frames > 1:
        flagged.append("media_frames")
    if stored_anew or frames > 1:
        buffer = io.BytesIO()
        standard.convert("RGB").save(buffer, "PNG")
        content = buffer.getvalue()
    return Picture(content, source, standard.height, standard.width, near)


def heif_reader(medium: str | bytes) -> str:
    """Let Pillow read HEIF; its name there. Raises BadRow where the extra is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise BadRow(
            "media_format",
            f"image {label(medium)} is HEIC, which the extra `heic` reads; pip install "
            "'loraline-pipeline[heic]', or convert it to PNG or JPEG",
        ) from None
    register_heif_opener(thumbnails=False)
    return "HEIF"


def type_not_read(content: bytes) -> str | None:
    """The name of a type of picture that is not read, by its first bytes."""
    for begin, name in NOT_READ.items():
        of_two = begin.startswith(b"P") and len(begin) == 2
        if content.startswith(begin) and (not of_two or content[2:3].isspace()):
            return name
    if content[4:8] == b"ftyp":
        return BRANDS.get(content[8:12], "a video")
    if content[DICOM_AT : DICOM_AT + 4] == b"DICM":
        return "DICOM"
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "SVG" if head.startswith(b"<") and b"<svg" in head else None


def is_raw(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF's first picture is the preview of a camera's own data, as in DNG and NEF."""
    return DNG_VERSION in tags or bool(tags.get(SUBFILE_TYPE, 0) & REDUCED)


def refuse_deep_color(
    name: str, medium: Media, image: Any, window: tuple[float, float] | None
) -> None:
    """Raise BadRow for 16 bits a channel in color where there is a window.

    Pillow reads the higher 8 of them, as do servers and processors. The image is not decoded yet.
    Grey with transparency is color to Pillow.
    """
    if window and image.mode not in DEEP and any(";16" in str(tile) for tile in image.tile):
        raise BadRow(
            "media_format",
            f"{name} {label(medium)} has 16 bits a channel in color, for which there is no "
            "`window`; convert it to 8 bits",
        )


def standardized(image: Any, window: tuple[float, float] | None = None) -> Any:
    """The image upright, on white and in eight bits; the same object where it is so already.

    vLLM turns images by their EXIF orientation and lays transparent ones on white; the processors
    of transformers do neither. Pillow cuts the values of deep pictures off at 255. Raises BadRow
    for a color mode that does not become RGB.
    """
    from PIL import Image, ImageOps

    # Pillow inverts those of eight bits alone.
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == MIN_IS_WHITE
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return eight_bits(image, window, inverted)
    if image.mode not in EIGHT_BITS:
        raise BadRow("media_format", f"an image has color mode {image.mode}; convert it to RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        if clear.getextrema()[3][0] < 255:
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(clear, mask=clear.getchannel("A"))
            return white
    return image


def eight_bits(image: Any, window: tuple[float, float] | None, inverted: bool) -> Any:
    """A picture of 16 bits, 32 bits or floats in grey, black to white over a range of values.

    White to black where it is `inverted`, and white where it is transparent. The range is `window`,
    or that of the picture's own values. Raises BadRow where a value is not finite.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if inverted:
        values = -values
        window = window and (-window[1], -window[0])
    if not np.isfinite(values).all():
        raise BadRow("media_broken", "an image holds values that are not finite")
    clear = image.info.get("transparency")
    opaque = values != clear if isinstance(clear, int) else np.ones(values.shape, bool)
    if not opaque.any():
        return Image.new("L", image.size, 255)
    low, high = window or (float(values[opaque].min()), float(values[opaque].max()))
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    scaled[~opaque] = 255
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8), "L")


def packed(bits: Any) -> bytes:
    import numpy as np

    return bytes(np.packbits(bits).tobytes())
