"""Each check finds what it looks for, and does what its action says."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import film, kept, picture, write_lines
from PIL import Image

from loraline.data import checks
from loraline.errors import UserError
from loraline.records import IMAGE, VIDEO

GOOD = {"question": "Where?", "answer": "Here."}


def turns(*said: str, **media: Any) -> dict[str, Any]:
    values = [{"from": "gpt" if i % 2 else "human", "value": s} for i, s in enumerate(said)]
    return {"conversations": values, **media}


def roles(*names: str) -> dict[str, Any]:
    return {"messages": [{"role": name, "content": f"t{i}"} for i, name in enumerate(names)]}


LONG = " ".join(f"word{n}" for n in range(400))
"""Four hundred words: more tokens than the profile's max_length."""

FOUND: dict[str, list[Any]] = {
    "unreadable": ['{"question": "a"', '"\\ud800', "[" * 5000],
    "format": [{"question": "a"}, ["a"], {"text": "alone"}],
    "roles": [
        roles("user", "user"),
        roles("user", "user", "assistant"),
        roles("assistant", "user"),
        roles("user", "assistant", "user"),
        roles("system", "assistant"),
        roles("user", "assistant", "system"),
    ],
    "empty": [{"question": "a", "answer": " \n"}, turns("", "b")],
    "tags": [turns(f"{IMAGE}a", "b"), turns("a", "b", images=["0.png"]), turns(VIDEO, "b")],
    "tags_in_answer": [
        turns(f"{IMAGE}a", f"{IMAGE}b", image="0.png"),
        turns(f"{IMAGE}a", VIDEO, image="0.png"),
    ],
    "unused": [
        {**GOOD, "context": "The house is here."},
        {**turns("a", "b"), "label": False},
        {
            "messages": [
                *roles("user")["messages"],
                {"role": "assistant", "content": "b", "weight": 0.5},
            ]
        },
    ],
    "numbers": [{"question": "a", "answer": 3}, {"question": "b", "answer": True}],
    "missing": [
        {"question": "a", "answer": "nan"},
        {"question": "None", "answer": "b"},
        {"prompt": "a", "completion": "NULL"},
        turns("who?", "NaN"),
    ],
    "line_ends": [{"question": "a", "answer": "b\n"}, {"question": "a", "answer": "\nc"}],
    "media_missing": [
        turns(f"{IMAGE}a", "b", image=name)
        for name in (
            "gone.png",
            "../0.png",
            "/etc/passwd",
            "https://x/0.png",
            "a\0b.png",
            "x" * 999,
        )
    ],
    "media_broken": [
        turns(f"{IMAGE}a", "b", image="text.png"),
        turns(f"{IMAGE}a", "b", image="half.png"),
        turns(f"{IMAGE}a", "b", image="data:image/png;base64,???"),
        turns(f"{VIDEO}a", "b", video="text.png"),
        turns(f"{VIDEO}a", "b", video="half.mp4"),
    ],
    "media_type": [turns(f"{IMAGE}a", "b", image="jpeg.png")],
    "media_format": [
        turns(f"{IMAGE}a", "b", image=name) for name in ("a.avif", "a.jp2", "a.svg", "a.pdf")
    ],
    "media_frames": [turns(f"{IMAGE}a", "b", image="moving.gif")],
    "appearance": [
        turns(f"{IMAGE}a", "b", image="turned.jpg"),
        turns(f"{IMAGE}a", "b", image="clear.png"),
        turns(f"{IMAGE}a", "b", image="deep.png"),
    ],
    "media_limits": [
        turns(f"{IMAGE}a", "b", image="wide.png"),
        turns(f"{IMAGE}a", "b", image="large.png"),
        turns(f"{IMAGE}a", "b", image="heavy.png"),
        turns(f"{VIDEO}a", "b", video="long.mp4"),
    ],
    "characters": [
        {"question": q, "answer": "b"} for q in ("a\0", "\ufeffq", "a\u202eb", "a\x1b[0m")
    ],
    "normalization": [{"question": "a\u0308", "answer": "b"}],
    "too_long": [{"question": LONG, "answer": "b"}],
    "answer_too_long": [{"question": "a", "answer": LONG[:700]}],
    "duplicates": [GOOD, {"question": " where? ", "answer": "Here."}],
}
"""Rows that each check finds something in; of duplicates, all but the first row."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media that are good, and media that are not."""
    place = tmp_path_factory.mktemp("media")
    image = Image.open(io.BytesIO(picture(1)))
    image.save(place / "0.png")
    image.save(place / "jpeg.png", "JPEG")
    image.save(place / "turned.jpg", exif=orientation(6))
    frames = [Image.open(io.BytesIO(picture(n))) for n in range(3)]
    frames[0].save(place / "moving.gif", save_all=True, append_images=frames[1:])
    image.convert("RGBA").resize((9, 9)).save(place / "opaque.png")
    clear = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    clear.save(place / "clear.png")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(place / "deep.png")
    for ending in ("avif", "jp2"):
        image.save(place / f"a.{ending}")
    (place / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    image.save(place / "a.pdf")
    Image.new("L", (900, 3)).save(place / "wide.png")
    Image.new("L", (400, 400)).save(place / "large.png")
    Image.effect_noise((300, 300), 80).save(place / "heavy.png")
    (place / "half.png").write_bytes(picture(2)[:300])
    (place / "text.png").write_text("<html>not an image</html>")
    (place / "long.mp4").write_bytes(film(60))
    (place / "half.mp4").write_bytes(film(60)[:1500])
    return place


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


LIMITS = ("image_pixels=100000", "media_bytes=60000", "video_frames=50")


def prepared(prepare, folder: Path, rows: list[Any], *on: str, **changes: Any):
    data = write_lines(folder / "data.jsonl", rows)
    return prepare(
        data, modality="vision", on=on, limit=LIMITS, max_length=512, max_new_tokens=128, **changes
    )


CASES = [
    (check, action)
    for check, one in checks.CHECKS.items()
    if check in FOUND
    for action in one.accepted
]


@pytest.mark.parametrize(("check", "action"), CASES)
def test_a_check_does_what_its_action_says(check: str, action: str, folder, prepare) -> None:
    rows = FOUND[check]
    merged = prepared(prepare, folder, [turns("good", "row"), *rows], f"{check}={action}")
    expected = len(rows) - (check == "duplicates")
    counted = {key: count for key, count in merged.counts.items() if key.startswith(f"{check} ")}
    if action == "repair":
        assert set(counted) <= {f"{check} repair", f"{check} drop"}
        assert sum(counted.values()) == expected
        assert len(kept(merged)) == 1 + counted.get(f"{check} repair", 0)
    else:
        assert counted == {f"{check} {action}": expected}
        found_at_the_end = check in ("duplicates",) and action == "fail"
        out = 0 if action == "keep" or found_at_the_end else expected
        assert len(kept(merged)) == 1 + len(rows) - out
    examples = [example for example in merged.examples if example["check"] == check]
    assert len(examples) == min(expected, 5) or action == "repair"
    assert all("data.jsonl line " in example["place"] for example in examples)


@pytest.mark.parametrize("check", FOUND)
def test_fail_ends_in_one_sentence_with_place_and_check(check: str, folder, prepare) -> None:
    from loraline.data import dataset

    merged = prepared(prepare, folder, [turns("good", "row"), *FOUND[check]], f"{check}=fail")
    with pytest.raises(UserError, match=rf"data.jsonl line \d+.*\(check {check}; ") as error:
        dataset.refuse(merged.examples)
    assert "\n" not in str(error.value)


def test_no_check_is_without_a_test() -> None:
    elsewhere = {"modality", "boxes", "special_tokens", "near_duplicates", "leaks", "near_leaks"}
    assert set(FOUND) | elsewhere == set(checks.CHECKS)


def test_a_good_row_of_each_kind_passes_all_checks(folder, prepare) -> None:
    rows = [
        GOOD,
        turns(f"{IMAGE}a", "b", image="0.png"),
        turns(f"{IMAGE}opaque", "b", image="opaque.png"),
        roles("system", "user", "assistant", "user", "assistant"),
        {"question": "a ä 漢字 \t\n e", "answer": "مرحبا"},
    ]
    merged = prepared(prepare, folder, rows)
    assert not merged.counts
    assert len(kept(merged)) == 5


def test_repair_of_roles_joins_turns_of_the_same_role(folder, prepare) -> None:
    row = {"messages": [*roles("user", "user", "assistant")["messages"]]}
    (record,) = kept(prepared(prepare, folder, [row], "roles=repair"))
    assert record.messages == (("user", "t0\nt1"), ("assistant", "t2"))


def test_repair_of_tags_puts_them_before_the_first_question(folder, prepare) -> None:
    row = turns("What?", "A cat.", images=["0.png"])
    (record,) = kept(prepared(prepare, folder, [row], "tags=repair"))
    assert record.messages[0] == ("user", f"{IMAGE}What?")


def test_repair_of_characters_removes_them_and_nothing_else(folder, prepare) -> None:
    (record,) = kept(
        prepared(prepare, folder, ['{"question": "a\\u0000b\\ud800 c\\n", "answer": "d"}'])
    )
    assert record.question == "ab c\n"


def with_call(
    name: str = "open",
    town: str = "Arlon",
    about: str = "Opens.",
    why: str = "It asks.",
):
    called = {"id": "a", "type": "function", "function": {"name": name, "arguments": {"t": town}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [called], "reasoning": why}
    result = {"role": "tool", "tool_call_id": "a", "content": "Done."}
    tool = {"type": "function", "function": {"name": "open", "description": about}}
    said = [{"role": "user", "content": "Open."}, answer, result]
    return {"messages": [*said, {"role": "assistant", "content": "It is open."}], "tools": [tool]}


@pytest.mark.parametrize("place", ["name", "town", "about", "why"])
def test_characters_of_calls_and_tools_are_checked_as_well(place: str, folder, prepare) -> None:
    dirty = with_call(**{place: "a\ud800b\ufeff"})
    (record,) = kept(prepared(prepare, folder, [dirty]))
    (clean,) = kept(prepared(prepare, folder, [with_call(**{place: "ab"})]))
    assert (record.details, record.tools) == (clean.details, clean.tools)
    dropped = prepared(prepare, folder, [dirty], "characters=drop")
    assert (kept(dropped), dropped.counts) == ([], {"characters drop": 1})


def test_repair_of_appearance_stores_the_image_as_servers_show_it(folder, prepare) -> None:
    rows = [turns(f"{IMAGE}a", "b", image=name) for name in ("turned.jpg", "clear.png")]
    turned, clear = (
        Image.open(io.BytesIO(r.images[0])) for r in kept(prepared(prepare, folder, rows))
    )
    assert turned.size == (30, 40)
    assert clear.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_media_in_a_row_for_a_text_model_are_refused(folder, prepare) -> None:
    write_lines(folder / "data.jsonl", [turns(f"{IMAGE}a", "b", image="0.png"), GOOD])
    merged = prepare(folder / "data.jsonl", on=("modality=drop",))
    assert merged.counts == {"modality drop": 1}


def test_text_that_reads_as_a_control_token_is_dropped(tmp_path: Path, prepare) -> None:
    rows = [GOOD, {"question": "Is <s>this</s> struck out?", "answer": "Yes."}]
    data = write_lines(tmp_path / "data.jsonl", rows)
    base = str(Path(__file__).parents[3] / "test_data/text/base")
    assert prepare(data, base=base).counts == {"special_tokens drop": 1}
    kept_too = prepare(data, base=base, on=("special_tokens=keep",))
    assert kept_too.counts == {"special_tokens keep": 1}
    assert len(kept(kept_too)) == 2


def test_images_in_data_uris_are_media_like_others(folder, prepare) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(picture(4)).decode()}"
    (record,) = kept(prepared(prepare, folder, [turns(f"{IMAGE}a", "b", image=uri)]))
    assert record.images == (picture(4),)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nonsense=drop", "unknown check 'nonsense' in 'nonsense=drop'; accepted: unreadable"),
        ("empty=repair", "check empty cannot be set to 'repair'; accepted: fail, drop"),
        ("empty", "check empty cannot be set to ''"),
    ],
)
def test_an_unknown_check_or_action_is_refused(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.policy([choice])
