"""The models behind the gateway: what their server lists, and what was registered of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from gateway.settings import Server
from loraline.base import pixels
from loraline.contract import Contract, first_complaint
from loraline.errors import UserError

Family = Literal["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "text", "default"]

FAMILIES: dict[str, Family] = {
    "qwen25vl": "qwen2.5-vl",
    "qwen2vl": "qwen2-vl",
    "qwen3vl": "qwen3-vl",
}
CONVENTIONS = {"qwen2-vl": "qwen2_vl", "qwen2.5-vl": "qwen2_5_vl", "qwen3-vl": "qwen3_vl"}
"""loraline.data.boxes' names of the families."""

VERSIONED = re.compile(r"/v(\d+)/?$")


class Entry(NamedTuple):
    """A server of the settings, and the contract that it names."""

    server: Server
    contract: Contract | None


@dataclass(frozen=True)
class Model:
    """A name that clients send as `model`."""

    name: str
    server: Server
    contract: Contract | None
    """The adapter's contract; for its base, the same one, which says what the base is."""

    adapted: bool
    """Whether it is an adapter, merged or not, and so has a trained prompt."""

    parent: str | None = None
    uri: str = ""
    max_model_len: int | None = None
    alias: str | None = None
    """The adapter's name in the settings, where this is a later version that its server follows."""

    @property
    def names(self) -> tuple[str, ...]:
        """What clients call it."""
        return (self.name, self.alias) if self.alias else (self.name,)

    @property
    def family(self) -> Family:
        if self.contract and self.contract.modality == "text":
            return "text"
        return family_of(self.contract.architecture if self.contract else self.name)

    @property
    def vision(self) -> bool:
        return self.family not in ("text", "default")

    @property
    def version(self) -> str:
        """Distinguishes this model's answers from those of an earlier model of that name."""
        if self.contract is None:
            return ""
        return self.uri if self.adapted else self.contract.base_revision

    def shown_size(self, width: int, height: int) -> tuple[int, int] | None:
        """Width and height of an upright image after the processor's resizing."""
        if not self.vision or self.contract is None:
            return None
        tall, wide = pixels.resized(
            height,
            width,
            cell=pixels.cell(CONVENTIONS[self.family]),
            min_pixels=self.contract.min_pixels or 0,
            max_pixels=self.contract.max_pixels or 2**31,
        )
        return wide, tall

    def card(self) -> dict[str, Any]:
        """What clients see of it."""
        card: dict[str, Any] = {
            "id": self.name,
            "role": self.role,
            "parent": self.parent,
            "uri": self.uri or None,
            "family": self.family,
            "max_model_len": self.max_model_len,
        }
        if (contract := self.contract) is not None:
            card |= {
                "base": contract.base,
                "base_revision": contract.base_revision,
                "modality": contract.modality,
                "architecture": contract.architecture,
                "dtype": contract.dtype,
                "min_pixels": contract.min_pixels,
                "max_pixels": contract.max_pixels,
            }
            if self.adapted:
                card |= {
                    "prompt": contract.prompt,
                    "prompt_uri": contract.prompt_uri,
                    "boxes": contract.boxes,
                    "max_new_tokens": contract.max_new_tokens,
                    "rank": contract.r,
                    "alpha": contract.lora_alpha,
                    "export": contract.export,
                    "adapter_sha256": contract.adapter_sha256,
                }
        return card

    @property
    def role(self) -> str | None:
        if self.adapted:
            return self.server.role
        return None if self.parent else "base"


def family_of(text: str) -> Family:
    """The Qwen-VL generation by an architecture or a model's name."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    return next((family for key, family in FAMILIES.items() if key in plain), "default")


def read_contract(server: Server) -> Contract | None:
    """The contract of a server's adapter, as the manifest mounts it; UserError for another file."""
    if server.contract is None:
        return None
    try:
        return Contract.model_validate_json(server.contract.read_bytes())
    except OSError as error:
        raise UserError(
            f"the contract {server.contract} cannot be read: {error.strerror}"
        ) from error
    except ValidationError as error:
        why = first_complaint(error)
        raise UserError(f"{server.contract} is not a contract of this version: {why}") from error


def models_of(entries: Sequence[Entry], listed: Any) -> list[Model]:
    """The models of one server by the answer of its /v1/models; ValueError if it is no such list.

    `entries` are those of its address: one for each adapter whose contract is known. The name of a
    followed adapter means its newest version, and is no model beside it.
    """
    try:
        items = {str(item["id"]): item for item in listed["data"]}
    except (TypeError, KeyError) as error:
        raise ValueError("no list of models") from error
    adapters = [name for name, item in items.items() if item.get("parent")]
    known = {}
    for entry in entries:
        if (served_name := own_name(entry, list(items), adapters)) is not None:
            known[served_name] = entry
    # The base has no prompt, but is what each of the contracts says.
    of_base = entries[0]
    models = [
        model_of(name, item, known.get(name) or Entry(of_base.server, None), of_base)
        for name, item in items.items()
    ]
    aliases = {model.alias for model in models}
    return [model for model in models if model.name not in aliases]


def model_of(name: str, item: Any, entry: Entry, of_base: Entry) -> Model:
    length, adapted = item.get("max_model_len"), entry.contract is not None
    base = not item.get("parent")
    model = Model(
        name,
        entry.server,
        of_base.contract if base and not adapted else entry.contract,
        adapted=adapted,
        parent=item.get("parent"),
        max_model_len=length if isinstance(length, int) else None,
    )
    if model.adapted:
        later = entry.server.name not in (None, name)
        model = replace(
            model,
            uri=versioned(entry.server.uri, str(item.get("root") or "")),
            alias=entry.server.name if later else None,
        )
    return model


def own_name(entry: Entry, names: Sequence[str], adapters: Sequence[str]) -> str | None:
    """The server's model that an entry describes; None if the server lists no such model.

    A server that follows an alias calls later versions NAME-v4; the newest counts.
    """
    name = entry.server.name
    if name is not None:
        later = {
            int(match[1]): each
            for each in names
            if (match := re.fullmatch(rf"{re.escape(name)}-v(\d+)", each))
        }
        return later[max(later)] if later else (name if name in names else None)
    if len(adapters) == 1:
        return adapters[0]
    merged = entry.contract is not None and entry.contract.export == "merged"
    return names[0] if merged and len(names) == 1 else None


def versioned(uri: str, root: str) -> str:
    """The registered version, as the adapter's folder says it: a server may follow an alias."""
    if (match := VERSIONED.search(root)) and uri.startswith("models:/"):
        return f"{uri.rpartition('/')[0]}/{match[1]}"
    return uri
