"""The dataset as a page for people: what was dropped and why, lengths, repetitions, examples.

Everything that comes from data is text: the template escapes it, and so does the Markdown.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.data import parts, pool
from loraline.data.checks import CHECKS
from loraline.data.dataset import by_check, settings
from loraline.data.facts import FLAGS
from loraline.data.lengths.rows import Exact
from loraline.data.merged import Dataset
from loraline.records import SPLITS, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from loraline.base.encoding import Row
    from loraline.profiles.profile import Profile

TEMPLATE = Path(__file__).with_suffix(".html.j2")
WORST, SEEN, CLUSTERS, BINS = 10, 5, 10, 24
PICTURE = 200
"""Longest side of a picture in the report, in pixels."""

SHOWN = 2000
"""Characters of a text in the report."""

PADS = re.compile(r"(<\|\w+_pad\|>)\1+")
"""An image's placeholders, of which there are as many as it has tokens."""


def write(merged: Dataset, folder: Path) -> Path:
    """Write report.html, which needs no other file, and report.md; return the former."""
    import jinja2

    summary = contents(merged)
    folder.mkdir(parents=True, exist_ok=True)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    target = folder / "report.html"
    with target.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(page.render(summary))
    with (folder / "report.md").open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(markdown(summary))
    return target


def contents(merged: Dataset) -> dict[str, Any]:
    """All that the report says, as plain values."""
    kept = merged.copies > 0
    facts, work = merged.facts, merged.work
    tokens = facts["tokens"][kept]
    media_kept = kept[facts["media_row"]]
    spread_rows = spread(merged)
    records = [merged.record(index) for index in spread_rows]
    rows_as_read = pool.in_worker(work, as_read, work.tokenizer, work.recipe, records)
    answers = "last answers" if (facts["turns"][kept] > 3).any() else "answers"
    return {
        "sources": [
            {
                "uri": source.entry.uri,
                "files": len(source.files),
                "sample": source.entry.sample or "all",
                "weight": f"{source.entry.weight:g}",
                "rows": int((kept & (facts["source"] == number)).sum()),
            }
            for number, source in enumerate(work.sources)
        ],
        "read": merged.read,
        "kept": int(kept.sum()),
        "weighted": any(source.entry.weight != 1 for source in work.sources),
        "rows": merged.rows,
        "formats": dict(merged.formats),
        "checks": [
            {"name": name, "action": action, "rows": count, "meaning": meaning(name)}
            for name, action, count in by_check(merged.counts)
        ],
        "unused": [
            {"name": name, "rows": count, "share": f"{100 * count / max(1, merged.read):.1f} %"}
            for name, count in merged.unused.most_common()
        ],
        "columns_used": columns_used(int(kept.sum())),
        "examples": merged.examples,
        "settings": settings(work),
        "prompt": work.prompt or "",
        "exact": work.tokenizer is not None,
        "base": work.recipe.base,
        "lengths": [
            lengths_of(name, facts["tokens"][kept & (merged.split == code)])
            for code, name in enumerate(SPLITS)
        ],
        "answers": lengths_of(answers, facts["answer"][kept]),
        "answer_share": float(facts["answer"][kept].sum() / max(1, tokens.sum())),
        "turns": lengths_of("turns", facts["turns"][kept]),
        "token_bars": bars(tokens),
        "pixel_bars": bars(facts["media_pixels"][media_kept]),
        "pixels": lengths_of("pixels", facts["media_pixels"][media_kept]),
        "worst": [row_of(merged, index) for index in worst(merged)],
        "seen": [
            {
                "place": merged.place(index),
                "tokens": int(facts["tokens"][index]),
                "rows": [[(learnt, cut(text)) for learnt, text in row] for row in rows],
                "pictures": pictures(record),
            }
            for index, record, rows in zip(spread_rows, records, rows_as_read, strict=True)
        ],
        "clusters": clusters(merged),
    }


def columns_used(count: int) -> str:
    """What is said of columns where none is listed as not used."""
    return "Every column is used." if count else "No row was kept, so no column is used."


def meaning(check: str) -> str:
    dropped = {
        "preference": "rows of preference data that hold nothing good",
        "sample": "rows that a sample leaves out",
        "weight": "rows that a weight below 1 leaves out",
    }
    return CHECKS[check].meaning if check in CHECKS else dropped[check]


def lengths_of(name: str, values: NDArray[Any]) -> dict[str, Any]:
    """Count, percentiles and maximum of whole numbers."""
    import numpy as np

    if not len(values):
        return {"name": name, "count": 0, "p50": 0, "p90": 0, "p99": 0, "max": 0}
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).round().astype(int).tolist()
    return {
        "name": name,
        "count": len(values),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(values.max()),
    }


def bars(values: NDArray[Any]) -> list[dict[str, Any]]:
    """A histogram: each bin's left edge, count, and height in percent of the highest."""
    import numpy as np

    if not len(values):
        return []
    counts, edges = np.histogram(values, bins=min(BINS, max(1, len(np.unique(values)))))
    return [
        {"from": int(edge), "count": int(count), "height": round(100 * count / counts.max(), 1)}
        for count, edge in zip(counts, edges, strict=False)
    ]


def worst(merged: Dataset) -> list[int]:
    """Kept rows in which most was found, the longest first among equals."""
    import numpy as np

    kept = np.flatnonzero(merged.copies > 0)
    flags = np.bitwise_count(merged.facts["flags"][kept])
    order = np.lexsort((-merged.facts["tokens"][kept], -flags.astype(int)))
    return [int(index) for index in kept[order[:WORST]]]


def spread(merged: Dataset) -> list[int]:
    """Training rows from the shortest to the longest."""
    import numpy as np

    train = np.flatnonzero((merged.copies > 0) & (merged.split == 0))
    if not len(train):
        return []
    order = train[np.argsort(merged.facts["tokens"][train], kind="stable")]
    ranks = np.linspace(0, len(order) - 1, min(SEEN, len(order))).round().astype(int)
    return [int(order[rank]) for rank in ranks]


def row_of(merged: Dataset, index: int) -> dict[str, Any]:
    flags = int(merged.facts["flags"][index])
    return {
        "place": merged.place(index),
        "split": SPLITS[merged.split[index]],
        "tokens": int(merged.facts["tokens"][index]),
        "found": [name for bit, name in enumerate(FLAGS) if flags >> bit & 1],
        "text": cut(merged.record(index).answer),
    }


Piece = tuple[bool, str]
"""Whether a text is learnt, and the text."""


def as_read(
    tokenizer: Path | None, recipe: Profile, records: Sequence[Record]
) -> list[list[list[Piece]]]:
    """What training makes of each record: rows, in pieces that are given or learnt."""
    ruler, as_pieces = parts.cached_lengths(tokenizer, recipe), []
    for record in records:
        if isinstance(ruler, Exact) and not record.videos:
            rows = ruler.encoder.conversation(record)
            as_pieces.append([pieces(row, ruler.encoder.tokenizer) for row in rows])
        else:
            as_pieces.append([pieces_of_turns(record)])
    return as_pieces


def pieces(row: Row, tokenizer: Any) -> list[Piece]:
    tokens, listed, place = row.prompt + row.answer, [], 0
    for answer in row.learnt_slices:
        context = tokenizer.decode(tokens[place : answer.start])
        listed.append((False, PADS.sub(lambda m: f"{m[1]} x {len(m[0]) // len(m[1])}", context)))
        listed.append((True, tokenizer.decode(tokens[answer])))
        place = answer.stop
    return listed


def pieces_of_turns(record: Record) -> list[Piece]:
    """The same for what cannot be encoded here."""
    learnt = record.learnt_turns()
    return [
        (True, text) if number in learnt else (False, f"[{role}] {text}\n")
        for number, (role, text) in enumerate(record.messages)
    ]


def pictures(record: Record) -> list[str]:
    """A row's images and first frames as small data URIs."""
    from PIL import Image

    uris = []
    for content in (*record.images, *(video.frames[0] for video in record.videos)):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image.thumbnail((PICTURE, PICTURE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        uris.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return uris[:4]


def clusters(merged: Dataset) -> list[dict[str, Any]]:
    """The largest groups of nearly equal rows, with three of each."""
    import numpy as np

    groups = []
    for unit, labels, rows in (
        ("rows", merged.near_texts, np.arange(len(merged.split))),
        ("images", merged.near_media, merged.facts["media_row"]),
    ):
        if labels is None or not len(labels):
            continue
        first, sizes = np.unique(labels, return_counts=True)
        order = np.argsort(-sizes, kind="stable")[:CLUSTERS]
        for label, size in zip(first[order], sizes[order], strict=True):
            if size > 1:
                members = rows[np.flatnonzero(labels == label)[:3]]
                groups.append(
                    {
                        "kind": unit,
                        "size": int(size),
                        "examples": [
                            {
                                "place": merged.place(int(row)),
                                "text": cut(merged.record(int(row)).answer, 160),
                            }
                            for row in members
                        ],
                    }
                )
    return groups


def cut(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most} characters more)"


def plain(value: Any) -> str:
    """A value for a Markdown table: one line, nothing that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(text, quote=False))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *[[plain(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(summary: dict[str, Any]) -> str:
    """The summary: counts, lengths and examples, without the histograms and the rows."""
    length = ("name", "count", "p50", "p90", "p99", "max")
    how = "as the model sees them" if summary["exact"] else "estimated: the base was out of reach"
    blocks = [
        "# Dataset report",
        f"{summary['read']} rows read, {summary['kept']} kept."
        + (" Splits count with weights." if summary["weighted"] else ""),
        table(["split", "rows"], list(summary["rows"].items())),
        table(["format", "rows"], list(summary["formats"].items())),
        "## Checks",
        table(
            ["check", "action", "rows", "meaning"],
            [(c["name"], c["action"], c["rows"], c["meaning"]) for c in summary["checks"]],
        )
        if summary["checks"]
        else "Nothing was found.",
        "## Columns not used",
        table(
            ["column", "rows in which it is filled", "share"],
            [(column["name"], column["rows"], column["share"]) for column in summary["unused"]],
        )
        if summary["unused"]
        else summary["columns_used"],
        "## Examples",
        table(
            ["check", "where", "what", "text"],
            [
                (e["check"], e["place"], e["clause"], cut(e["text"], 120))
                for e in summary["examples"]
            ],
        ),
        f"## Tokens, {how}",
        table(
            length,
            [[row[key] for key in length] for row in (*summary["lengths"], summary["answers"])],
        ),
    ]
    return "\n\n".join(blocks) + "\n"
