"""The test split as requests for `vllm bench serve`, in its `custom` or `custom_image` format.

The prompts are the users' last turns; vLLM puts the chat template around them. Images are data
URIs, since the server may be on another machine, where a path would lead nowhere.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from loraline.data.merged import Dataset, batches
from loraline.records import IMAGE, SPLITS, Record, content_parts, from_columns

MOST_REQUESTS = 1000
"""Requests; vllm bench serve takes as many as it is asked for, again and again."""


def write(merged: Dataset, folder: Path) -> Path:
    """Write `custom.jsonl`, or `custom_image.jsonl` if rows show images; videos stay out."""
    has_media = bool(len(merged.facts["media_row"]))
    folder.mkdir(parents=True)
    target = folder / ("custom_image.jsonl" if has_media else "custom.jsonl")
    written = 0
    test = (merged.split == SPLITS.index("test")) & (merged.copies > 0)
    with target.open("w", encoding="utf-8") as file:
        for part, start in zip(merged.work.parts, merged.starts, strict=True):
            index = int(start)
            if written == MOST_REQUESTS:
                break
            for batch in batches(merged.work, part):
                in_test = test[index : index + len(batch)]
                for offset in in_test.nonzero()[0].tolist():
                    row = from_columns(batch.slice(offset, 1).to_pylist()[0])
                    if row.videos or written == MOST_REQUESTS:
                        continue
                    written += 1
                    images = [as_uri(image) for image in row.images]
                    tokens = int(merged.facts["answer"][index + offset])
                    json.dump(request(row, images, tokens, has_media), file, ensure_ascii=False)
                    file.write("\n")
                index += len(batch)
    return target


def as_uri(image: bytes) -> str:
    from PIL import Image

    mime = Image.MIME[Image.open(io.BytesIO(image)).format or "PNG"]
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def request(row: Record, images: list[str], tokens: int, has_media: bool) -> dict[str, Any]:
    """One line: `content` parts in their order where images are shown, or a `prompt` of text."""
    if not has_media:
        return {"prompt": row.question, "output_tokens": tokens}
    uris = iter(images)
    # Images of earlier turns come first; the last turn has its own in their places.
    earlier = len(images) - row.question.count(IMAGE)
    content: list[dict[str, Any]] = [{"type": "image", "image": next(uris)} for _ in range(earlier)]
    for part in content_parts(row.question):
        content.append(
            {"type": "image", "image": next(uris)} if part["type"] == "image" else dict(part)
        )
    return {"content": content, "output_tokens": tokens}
