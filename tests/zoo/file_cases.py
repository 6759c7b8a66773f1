"""Files that are no safetensors file, or hardly one, and files beside the adapter's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters import Case, named
from edits import (
    CONFIG,
    WEIGHTS,
    Edit,
    cast,
    config_text,
    each,
    entry,
    folder_instead,
    header,
    raw,
    written,
)


def offsets(change: Any) -> Edit:
    """Change where one tensor's bytes are."""
    return entry(lambda result: result | {"data_offsets": change(*result["data_offsets"])})


def hole(text: bytes, data: bytes) -> tuple[bytes, bytes]:
    result = json.loads(text)
    for value in result.values():
        if "data_offsets" in value and value["data_offsets"][0]:
            value["data_offsets"] = [offset + 8 for offset in value["data_offsets"]]
    size = min(v["data_offsets"][1] for v in result.values() if "data_offsets" in v)
    return json.dumps(result).encode(), data[:size] + b"\0" * 8 + data[size:]


def shared(found: dict[str, Any]) -> dict[str, Any]:
    """Two tensors over the same bytes."""
    keys = [key for key in sorted(found) if key.endswith("q_proj.lora_A.weight")]
    return found | {keys[0]: found[keys[1]]}


def listed(found: dict[str, Any]) -> list[Any]:
    return list(found.items())


def twice(text: bytes, data: bytes) -> tuple[bytes, bytes]:
    key, value = next((k, v) for k, v in json.loads(text).items() if k != "__metadata__")
    return text.rstrip()[:-1] + f', "{key}": {json.dumps(value)}}}'.encode(), data


def length(number: int) -> Edit:
    def edit(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(number.to_bytes(8, "little") + content[8:])

    return edit


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    (folder / WEIGHTS).symlink_to("weights.safetensors")


def cases() -> Iterator[Case]:
    case = named("file", "mistral")
    yield case("trailing-bytes", raw(lambda text, data: (text, data + b"\0" * 16)))
    yield case("hole", raw(hole))
    yield case("shared-bytes", header(shared))
    yield case("header-list", header(listed))
    yield case("header-empty-list", header(lambda result: []))
    yield case("header-number", header(lambda result: 5))
    yield case("header-null", header(lambda result: None))
    yield case("header-empty", header(lambda result: {}))
    yield case("header-no-json", raw(lambda text, data: (text[:-2], data)))
    yield case("header-no-text", raw(lambda text, data: (text[:-1] + b',"\xff":1}', data)))
    yield case("header-spaced", raw(lambda text, data: (text + b" " * 64, data)))
    yield case("header-led-by-space", raw(lambda text, data: (b" " + text, data)))
    yield case("header-twice-a-key", raw(twice))
    yield case("header-deep", header(lambda result: result | {"__metadata__": nested(500)}))
    yield case("header-nan", header(lambda result: result | {"x": float("nan")}))
    yield case("length-zero", length(0))
    yield case("length-beyond", length(2**40))
    yield case("length-largest", length(2**64 - 1))
    yield case("empty", written(WEIGHTS, b""))
    yield case("seven-bytes", written(WEIGHTS, b"\1\0\0\0\0\0\0"))
    yield case("length-alone", written(WEIGHTS, (2).to_bytes(8, "little") + b"{}"))
    yield case("text", written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\nsize 1\n"))
    yield case("metadata-numbers", header(lambda result: result | {"__metadata__": {"rank": 4}}))
    yield case("metadata-null", header(lambda result: result | {"__metadata__": None}))
    yield case("metadata-list", header(lambda result: result | {"__metadata__": []}))
    yield case("metadata-text", header(lambda result: result | {"__metadata__": "pt"}))
    yield case(
        "metadata-nested", header(lambda result: result | {"__metadata__": {"a": {"b": "c"}}})
    )
    yield case("metadata-empty", header(lambda result: result | {"__metadata__": {}}))
    yield case("metadata-other", header(lambda result: result | {"__metadata__": {"format": "tf"}}))
    yield case(
        "metadata-none", header(lambda result: {k: v for k, v in result.items() if k[0] != "_"})
    )
    yield case("entry-null", entry(lambda result: None))
    yield case("entry-list", entry(lambda result: []))
    yield case("entry-number", entry(lambda result: 1))
    yield case(
        "entry-no-dtype", entry(lambda result: {k: v for k, v in result.items() if k != "dtype"})
    )
    yield case(
        "entry-no-shape", entry(lambda result: {k: v for k, v in result.items() if k != "shape"})
    )
    yield case(
        "entry-no-offsets",
        entry(lambda result: {k: v for k, v in result.items() if k[:4] != "data"}),
    )
    yield case("entry-more", entry(lambda result: result | {"scale": 2}))
    yield case("dtype-unknown", entry(lambda result: result | {"dtype": "F31"}))
    yield case("dtype-lower-case", entry(lambda result: result | {"dtype": "f32"}))
    yield case("dtype-number", entry(lambda result: result | {"dtype": 32}))
    yield case("dtype-integer-bits", entry(lambda result: result | {"dtype": "I32"}), retuned=True)
    yield case("shape-number", entry(lambda result: result | {"shape": 512}))
    yield case("shape-negative", entry(lambda result: result | {"shape": [-4, -128]}))
    yield case("shape-text", entry(lambda result: result | {"shape": ["4", "128"]}))
    yield case("shape-float", entry(lambda result: result | {"shape": [4.0, 128.0]}))
    yield case("shape-small", entry(lambda result: result | {"shape": [4, 64]}))
    yield case("shape-other", entry(lambda result: result | {"shape": [2, 256]}))
    yield case("shape-huge", entry(lambda result: result | {"shape": [2**62, 2**62]}))
    yield case("shape-deep", entry(lambda result: result | {"shape": [1, 1, 4, 128]}))
    yield case("offsets-reversed", offsets(lambda start, end: [end, start]))
    yield case("offsets-negative", offsets(lambda start, end: [-8, end]))
    yield case("offsets-beyond", offsets(lambda start, end: [start, end + 2**30]))
    yield case("offsets-float", offsets(lambda start, end: [float(start), float(end)]))
    yield case("offsets-three", offsets(lambda start, end: [start, end, end]))
    yield case("offsets-null", offsets(lambda start, end: None))
    yield case("offsets-odd", offsets(lambda start, end: [start + 1, end + 1]))
    yield case("float8-e4m3", cast("float8_e4m3fn"), precision="float8_e4m3fn")
    yield case("float8-e5m2", cast("float8_e5m2"), precision="float8_e5m2")
    for dtype in ("int8", "int16", "int32", "int64", "uint8"):
        yield case(dtype, each(lambda key, value: value * 10), cast(dtype), retuned=True)
    for dtype in ("uint16", "uint32", "uint64"):
        yield case(dtype, each(lambda key, value: (value * 10).abs()), cast(dtype), retuned=True)
    for halves in ("float16", "bfloat16", "float64", "int8"):
        yield case(f"b-{halves}", each(halved(halves)), retuned=True)
    yield case("float64-nan", cast("float64"), each(lambda key, value: value * float("nan")))
    yield case("float16-overflowing", each(lambda key, value: value * 1e6), cast("float16"))
    yield case("bool", cast("bool"), retuned=True)
    yield case("complex", cast("complex64"), policy="half of each number would be dropped")
    yield case("float64-large", each(lambda key, value: value * 1e20), cast("float64"))
    yield case("float64-beyond", cast("float64"), each(lambda key, value: value * 1e300))
    yield case("float64-tiny", cast("float64"), each(lambda key, value: value * 1e-60))
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "scheduler.pt",
        "rng_state.pth",
        "adapter_model.bin",
    ):
        yield case(f"beside-{name.replace('.', '-').replace('_', '-')}", written(name, b"\x80\x02"))
    yield case("beside-texts", written("README.md", "x"), written("trainer_state.json", "{}"))
    yield case("beside-tokens", written("added_tokens.json", "{}"), written("tokenizer.json", "{}"))
    yield case("beside-base", written("model.safetensors", b""), written("pytorch_model.bin", b""))
    yield case("weights-folder", folder_instead(WEIGHTS))
    yield case("config-folder", folder_instead(CONFIG))
    yield case("weights-link", linked)
    yield case("config-crlf", config_text(lambda text: text.replace(",", ",\r\n")))


def halved(dtype: str) -> Any:
    """Only lora_B is kept in another type."""
    import torch

    kept = getattr(torch, dtype)
    return lambda key, value: (value * 4).to(kept) if "lora_B" in key else value


def nested(depth: int) -> Any:
    return "x" if depth == 0 else {"a": nested(depth - 1)}
