"""A dataset's rows, read and checked part by part, in as many processes as there are cores.

A part is a range of one data file. What a worker makes of it is a file of kept rows, arrays of
facts about them, and a page of counts; none depends on where ranges begin or who reads them. A part
that is finished stays, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from loraline.base import pixels
from loraline.data import boxes, checks, pool
from loraline.data.checks import DROP, FAIL, KEEP, REPAIR, BadRow
from loraline.data.duplicates import signatures
from loraline.data.facts import facts_of, join, normalised
from loraline.data.lengths.rows import Lengths, lengths
from loraline.data.reading import columns, formats, images, media, readers, streams, videos
from loraline.data.reading.drafts import Draft
from loraline.data.reading.formats import Reading
from loraline.data.reading.preferences import LeftOut
from loraline.data.reading.sources import Source
from loraline.data.work import Candidate, Medium, Part, Tally, Work
from loraline.errors import TryAgain, UserError
from loraline.process import signals
from loraline.profiles.profile import Profile
from loraline.records import Record, Video, batch, schema

ROWS, BYTES = 2048, 32 * 2**20
"""Kept rows that are written at once, and bytes of media after which they are written earlier."""


def plan(sources: Sequence[Source], size: int) -> Iterator[Part]:
    """Cut the data files into parts of about `size` bytes, in the order of the rows."""
    number = 0
    for index, source in enumerate(sources):
        for file in source.files:
            for start, stop in ranges(source, file.name, file.size, size):
                yield Part(number, index, file.name, file.split, start, stop)
                number += 1


def ranges(source: Source, name: str, length: int, size: int) -> Iterator[tuple[int, int | None]]:
    """Start and stop of each part of a file: bytes of JSONL, row groups of Parquet, rows of Arrow.

    A file that cannot be cut is one part, from 0 to its end (None). `length` and `size` are bytes.
    """
    ending = streams.ending_of(name)
    if ending == ".jsonl" and not streams.packing_of(name) and not source.entry.encoding:
        for start in range(0, max(length, 1), size):
            yield start, min(start + size, length)
    elif ending in (".parquet", ".arrow") and source.bucket is None:
        total, rows = column_units(source.root / name)
        step = max(1, total * size // max(length, 1)) if rows else 1
        for start in range(0, max(total, 1), step):
            yield start, min(start + step, total)
    else:
        yield 0, None


def column_units(path: Path) -> tuple[int, bool]:
    """How many row groups a Parquet file has, or rows an Arrow file, and whether it is rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if streams.ending_of(path.name) == ".parquet":
            return int(pq.read_metadata(path).num_row_groups), False
        return int(readers.arrow_table(path).num_rows), True
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is broken: {' '.join(str(error).split())[:200]}") from error


def run(work: Work, workers: int) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Process the parts that are not finished yet; yield each with its tally, in order."""
    todo = [part for part in work.parts if not work.file(part, ".json").is_file()]
    large = sum(file.size for source in work.sources for file in source.files) >= pool.PARALLEL_FROM
    if workers < 2 or len(todo) < 2 or not large:
        for part in work.parts:
            if not work.file(part, ".json").is_file():
                process(work, part)
            yield part, json.loads(work.file(part, ".json").read_bytes())
        return

    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool

    workers_pool = pool.processes(min(workers, len(todo)))
    try:
        # A worker that starts while its parent ends would complain of what is gone.
        with signals.deferred():
            waiting = {part.number: workers_pool.submit(process, work, part) for part in todo}
        for part in work.parts:
            if part.number in waiting:
                waiting.pop(part.number).result()
            yield part, json.loads(work.file(part, ".json").read_bytes())
        workers_pool.shutdown()
    except BrokenProcessPool as error:
        raise TryAgain(
            "a worker process was killed, most likely for memory; run it again with fewer --workers"
        ) from error
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
        # The pool's thread ends here, or the interpreter's own end would wake it while it closes
        # its pipes, and complain of one that is closed.
        workers_pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=2)
def cached_lengths(folder: Path | None, recipe: Profile) -> Lengths:
    return lengths(folder, recipe)


def process(work: Work, part: Part) -> None:
    """Read one part, check its rows, and write what was made of it, the tally last of all."""
    import gc

    # Rows hold no cycles, and the collector would walk through all of transformers to see it.
    collects = gc.isenabled()
    gc.disable()
    try:
        write_part(work, part)
    finally:
        if collects:
            gc.enable()


def write_part(work: Work, part: Part) -> None:
    """Write a part's rows (.arrow), facts (.npz), signatures (.npy), and its tally (.json) last."""
    import numpy as np
    import pyarrow as pa

    tally, facts, signed = Tally(), [], []
    ruler = cached_lengths(work.tokenizer, work.recipe)
    path = work.sources[part.source].path(part.file)
    temporary = work.file(part, ".arrow.part")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema()) as rows:
        for group in grouped(candidates(work, part, path, ruler, tally)):
            kept, tokens = within_length(group, ruler, work, tally)
            if kept:
                rows.write_batch(
                    batch([candidate.record for candidate in kept], [row for row, _ in tokens])
                )
                texts = [normalised(candidate.record) for candidate in kept]
                facts.append(facts_of(kept, texts, tokens, part.split, part.source, work.group_by))
                signed.append(signatures(texts))
    temporary.replace(work.file(part, ".arrow"))
    with work.file(part, ".npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **join(facts))
    with work.file(part, ".npy").open("wb") as file:
        np.save(file, np.concatenate(signed) if signed else signatures([]))
    unfinished = work.file(part, ".json.part")
    with unfinished.open("w") as page:
        json.dump(vars(tally), page)
    unfinished.replace(work.file(part, ".json"))


def candidates(
    work: Work, part: Part, path: Path, ruler: Lengths, tally: Tally
) -> Iterator[Candidate]:
    """Rows of a part that pass the checks that need no other row; the rest is counted."""
    source = work.sources[part.source]
    entry = source.entry
    reading = Reading(
        work.prompt,
        entry.columns,
        entry.columns_from,
        work.group_by,
        ignore=entry.ignore,
        preference=entry.preference,
        learn=entry.learn,
        turns=entry.turns,
        vision=work.recipe.modality == "vision",
    )
    fetch = source.beside(part.file)
    sample = entry.sample
    share = float(sample[1:]) / 100 if sample.startswith("%") else 1.0
    named = {name for value in entry.columns.values() for name in columns.columns_of(value)}
    absent = set(named)
    cursor = readers.Cursor()
    for number, raw in enumerate(
        readers.rows(path, part.start, part.stop, work.limits.row_bytes, entry.encoding, cursor),
        1,
    ):
        tally.lines = number
        if raw is None:
            continue
        tally.rows += 1
        if absent and isinstance(raw, dict):
            absent -= raw.keys()
        try:
            if isinstance(raw, BadRow):
                raise raw
            drafted = formats.draft(raw, reading)
            tally.formats[drafted.format] += 1
            for key in drafted.listed:
                tally.unused[key] += 1
            pick = sampling_number(drafted)
            if pick >= share * 2**64:
                tally.counts["sample out"] += 1
                continue
            candidate = checked(drafted, number, pick, work, source, fetch, ruler)
            tally.tools += bool(drafted.tools)
        except LeftOut:
            tally.counts["preference out"] += 1
            continue
        except BadRow as bad:
            action = work.actions[bad.check]
            content = raw if not isinstance(raw, BadRow) else ""
            action = DROP if action == REPAIR else action
            tally.add(bad.check, action, number, bad.clause, content, cursor.line)
            continue
        for check in dict.fromkeys(candidate.flagged):
            meaning = checks.CHECKS[check].meaning
            tally.add(check, work.actions[check], number, meaning, raw, cursor.line)
        candidate.line = cursor.line
        yield candidate
    tally.present = sorted(named - absent)


def checked(
    drafted: Draft,
    number: int,
    pick: int,
    work: Work,
    source: Source,
    fetch: media.Fetch,
    ruler: Lengths,
) -> Candidate:
    """One draft through the checks, to a record; BadRow says which it does not pass."""
    flagged: list[str] = []
    actions = work.actions
    if drafted.number:
        if actions["numbers"] != REPAIR:
            raise BadRow("numbers", drafted.number)
        flagged.append("numbers")
    if drafted.missing:
        if actions["missing"] != KEEP:
            raise BadRow("missing", drafted.missing)
        flagged.append("missing")
    turns = drafted.turns
    if work.boxes and source.entry.boxes:
        turns = boxes.with_names(turns, drafted.objects)
    turns = checks.clean_text(turns, actions, flagged)
    details, tools = drafted.details, drafted.tools
    if details or tools:
        details, tools = checks.clean_details(details, tools, actions, flagged)
    turns = checks.alternate(turns, actions, flagged, details)
    checks.refuse_empty_turns(turns, details)
    if work.recipe.modality == "text":
        if drafted.images or drafted.videos or drafted.shows:
            raise BadRow("modality", "holds media, the profile's modality is text")
    else:
        turns = checks.match_tags(turns, len(drafted.images), len(drafted.videos), actions, flagged)
    if drafted.videos and not ruler.shows_videos:
        raise BadRow("modality", f"holds a video, which {work.recipe.base} has no place for")
    if (controls := ruler.controls) is not None:
        places = [(f"{role} turn", text) for role, text in turns]
        for number, detail in details.items():
            # Templates print them as they print texts.
            beside = (detail.calls, detail.reasoning, detail.name)
            places += [(f"what is beside the {turns[number][0]} turn", text) for text in beside]
        for place, text in (*places, ("a tool", tools)):
            if match := controls.search(text):
                if actions["special_tokens"] in (FAIL, DROP):
                    raise BadRow("special_tokens", f"{place} holds {match.group()!r}")
                flagged.append("special_tokens")
    measured_media: list[Medium] = []
    pictures: list[bytes] = []
    clips: list[Video] = []
    for medium in drafted.images:
        if not isinstance(medium, str | bytes):
            raise BadRow("format", "an image is a list")
        picture = images.load_image(
            medium, fetch, work.limits, actions, flagged, source.entry.window
        )
        pictures.append(picture.content)
        measured_media.append(Medium(picture.source, picture.near, picture.height, picture.width))
    for medium in drafted.videos:
        cell = pixels.cell(work.recipe.base)
        clip = videos.load_video(
            medium, fetch, work.limits, cell, actions, flagged, source.entry.window
        )
        clips.append(clip.video)
        measured_media.append(Medium(clip.source, clip.near, clip.height, clip.width))
    if work.boxes and source.entry.boxes:
        sizes = [(medium.height, medium.width) for medium in measured_media[: len(pictures)]]
        turns = boxes.convert(
            turns, drafted.objects, sizes, source.entry.boxes, work.boxes, work.recipe
        )
    elif pictures or drafted.objects:
        boxes.refuse_places(turns if pictures else [], drafted.objects)
    record = Record(tuple(turns), tuple(pictures), tuple(clips), tools, details=details)
    if details or tools:
        ruler.check_rendered(record)
    return Candidate(number, record, drafted, pick, measured_media, flagged)


def sampling_number(drafted: Draft) -> int:
    """A number below 2**64 that is a row's own, for sampling."""
    text = "\0".join(content for _, content in drafted.turns)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    for medium in chain(drafted.images, drafted.videos):
        digest.update(medium if isinstance(medium, bytes) else repr(medium).encode())
    return int.from_bytes(digest.digest(), "big")


def grouped(rows: Iterator[Candidate]) -> Iterator[list[Candidate]]:
    """Rows in groups that fit the memory, whatever their images weigh."""
    group: list[Candidate] = []
    weight = 0
    for row in rows:
        group.append(row)
        if row.media:
            weight += sum(map(len, row.record.images))
            weight += sum(len(frame) for video in row.record.videos for frame in video.frames)
        if len(group) == ROWS or weight >= BYTES:
            yield group
            group, weight = [], 0
    if group:
        yield group


def within_length(
    group: list[Candidate], ruler: Lengths, work: Work, tally: Tally
) -> tuple[list[Candidate], list[tuple[int, int]]]:
    """The rows that are not too long, with their tokens and their answers'."""
    sizes = [[(medium.height, medium.width) for medium in row.media] for row in group]
    kept, tokens = [], []
    most, most_answer = work.recipe.max_length, work.recipe.max_new_tokens
    for row, size in zip(
        group, ruler.measure([candidate.record for candidate in group], sizes), strict=True
    ):
        clauses = []
        if size[0] > most:
            clauses.append(("too_long", f"has {size[0]} tokens, max_length is {most}"))
        if size[1] > most_answer:
            clause = f"answer has {size[1]} tokens, max_new_tokens is {most_answer}"
            clauses.append(("answer_too_long", clause))
        dropped = False
        for check, clause in clauses:
            action = work.actions[check]
            tally.add(check, action, row.number, clause, row.record.answer, row.line)
            row.flagged.append(check)
            dropped = dropped or action in (FAIL, DROP)
            if dropped:
                break
        if not dropped:
            kept.append(row)
            tokens.append(size)
    return kept, tokens
