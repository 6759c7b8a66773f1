"""All rows of a dataset as arrays, with the split and the number of copies of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loraline.data.places import Places
from loraline.data.work import Part, Work
from loraline.records import SPLITS, Record, from_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass
class Dataset:
    """Facts about every row that was read whole, and what becomes of it."""

    work: Work
    facts: dict[str, NDArray[Any]]
    starts: NDArray[Any]
    """Index of each part's first row."""

    places: Places

    split: NDArray[Any]
    copies: NDArray[Any]
    """How many copies of each row are in the dataset; 0 leaves it out."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows by `check action`."""

    formats: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    """Rows in which a column is filled that is not used, by the column."""

    tools: int = 0
    """Rows with tools, of those that were read whole."""

    present: set[str] = field(default_factory=set)
    """Columns that `columns` names and that some row has."""

    near_texts: NDArray[Any] | None = None
    near_media: NDArray[Any] | None = None
    """Cluster label of each row's text, and of each image or video."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split, copies counted."""
        return {
            name: int(self.copies[self.split == code].sum()) for code, name in enumerate(SPLITS)
        }

    def place(self, index: int) -> str:
        """File and line or row of a row."""
        number = int(self.starts.searchsorted(index, "right")) - 1
        row, line = (int(self.facts[fact][index]) for fact in ("number", "line"))
        return self.places.of(self.work.parts[number], row, line)

    def record(self, index: int) -> Record:
        """One row, read again from its part."""
        number = int(self.starts.searchsorted(index, "right")) - 1
        offset = index - int(self.starts[number])
        for batch in batches(self.work, self.work.parts[number]):
            if offset < len(batch):
                return from_columns(batch.slice(offset, 1).to_pylist()[0])
            offset -= len(batch)
        raise IndexError(index)


def batches(work: Work, part: Part) -> Iterator[pa.RecordBatch]:
    """The kept rows of a part."""
    import pyarrow as pa

    with pa.memory_map(str(work.file(part, ".arrow"))) as source:
        yield from pa.ipc.open_stream(source)
