"""The champion beside a candidate: measured again where its numbers can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loraline import contract
from loraline.base import locate
from loraline.base.encoding import Encoder
from loraline.errors import UserError
from loraline.evaluation import measurement
from loraline.tracking import identity, runs, tags

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from loraline.contract import Contract
    from loraline.records import Record


@contextmanager
def comparable_champion(
    champion: ModelVersion | None,
    held_out: Sequence[Record],
    candidate: Contract,
    prints: Mapping[str, str],
) -> Iterator[tuple[dict[str, Path], str | None]]:
    """The champion's adapter, if its numbers on these rows can be compared, and words for both."""
    import mlflow

    if champion is None:
        yield {}, None
        return
    version = f"version {champion.version}"
    mlflow.set_tag(tags.CHAMPION, str(champion.version))
    if not champion.source.startswith("models:/"):
        reason = f"{champion.source} was not logged by train_qlora"
        mlflow.set_tag(tags.CHAMPION_REFUSED, reason)
        yield {}, f"{version}, not measured: {reason}"
        return
    with runs.logged_adapter(champion.source.removeprefix("models:/")) as adapter:
        expect_judged(champion, contract.folder_digest(adapter))
        agreed = contract.read(adapter)
        if agreed.is_served_as(candidate):
            mlflow.set_tag(tags.CHAMPION_AGAIN, str(champion.version))
            yield {}, f"{version}, which is this very adapter"
            return
        if agreed.base_revision != candidate.base_revision:
            differing = ["base"]
        elif agreed.quantization != candidate.quantization:
            differing = ["quantization of its base"]
        else:
            encoder = Encoder.of(agreed, locate.locate_measured(agreed))
            champion_prints = measurement.fingerprints(encoder, agreed, held_out)
            differing = [key for key, value in prints.items() if champion_prints[key] != value]
        if not differing:
            yield {"champion": adapter}, version
            return
        reason = f"it has another {' and '.join(differing)}"
        mlflow.set_tag(tags.CHAMPION_REFUSED, reason)
        yield {}, f"{version}, not measured: {reason}"


def expect_judged(champion: ModelVersion, digest: str) -> None:
    """Raise a UserError if the champion's files are not those that its gate judged.

    Where its version keeps no digest, they have to be those that its training logged.
    """
    import mlflow

    judged = champion.tags.get(tags.ADAPTER_DIGEST)
    if judged is None and champion.run_id:
        judged = mlflow.get_run(champion.run_id).data.tags.get(tags.ADAPTER_DIGEST)
    if judged != digest:
        change = (
            f"the champion, version {champion.version}, has digest {digest} instead of {judged}"
        )
        raise UserError(identity.changed("quality_gate", change))
