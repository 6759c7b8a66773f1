"""Small data for tests: rows, images, videos, and a profile to prepare them with."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from loraline import records
from loraline.data.merged import Dataset
from loraline.profiles.profile import Profile


def profile(modality: str = "text", **changes: Any) -> Profile:
    """A profile whose base is out of reach, so that lengths are estimated and quickly had."""
    limits = {"min_pixels": 784, "max_pixels": 50176} if modality == "vision" else {}
    fields = {"base": "./nowhere", "modality": modality, "r": 8, "lora_alpha": 8, **limits}
    return Profile(**(fields | {"target_modules": ["q_proj"]} | changes))


def write_lines(file: Path, rows: list[Any]) -> Path:
    """A JSONL file; a row that is a string is written as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def kept(merged: Dataset) -> list[records.Record]:
    """The records that are in the dataset, in order, whatever their split."""
    return [merged.record(i) for i in (merged.copies > 0).nonzero()[0].tolist()]


def picture(number: int = 0, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An encoded image that is unlike those of other numbers."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def sixteen_bits(values: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, height x width x channels; Pillow writes grey alone."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def film(frames: int = 30, rate: int = 10, size: tuple[int, int] = (64, 48)) -> bytes:
    """An MP4 whose frames grow lighter."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        for index in range(frames):
            shade = np.full((size[1], size[0], 3), 255 * index // max(1, frames - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def cut_film() -> bytes:
    """Two seconds of a film, of which telephones keep the beginning in the file."""
    content = film(30, 10)
    at = content.index(b"elst") + 12
    length, start = 2000, 10_240
    return content[:at] + struct.pack(">Ii", length, start) + content[at + 8 :]


def turned_film() -> bytes:
    """A film as a telephone stores it, on its side: its left half is white, and players show that
    half above the other."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :32] = 255
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    content = buffer.getvalue()
    at = content.index(b"tkhd") + 44
    one, last = 1 << 16, 1 << 30
    return content[:at] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, last) + content[at + 36 :]


def prefixing_base(folder: Path, template: str | None = None, *, metaspace: bool = False) -> Path:
    """A base of which only the tokenizer is there: it puts a space before every text, as the
    `tokenizer.json` of Mistral 7B v0.1 does; `metaspace` lets its pre-tokenizer do so, as that of
    v0.3."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=["\u2581", *map(chr, range(33, 127))],
    )
    made.train_from_iterator(["[INST] What is the capital of France? [/INST] Paris"] * 4, trainer)
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    made.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
