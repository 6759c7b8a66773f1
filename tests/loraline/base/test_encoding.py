import io
from collections.abc import Sequence
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import prefixing_base, profile
from PIL import Image
from tokenizers.processors import TemplateProcessing

from loraline import records
from loraline.answering import hf
from loraline.base.encoding import IGNORED, Encoder, Row
from loraline.base.load import load
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.records import IMAGE, VIDEO, Record, Video, from_prompt
from loraline.training.rows import load_rows

VISION = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
ALL = ("mistral", *VISION)
PIXELS = 28 * 28 * 6


def modality(architecture: str) -> str:
    return "text" if architecture == "mistral" else "vision"


def drawing(width: int, height: int) -> bytes:
    image = Image.new("RGB", (width, height), "white")
    image.paste("black", (4, 4, width // 2, height // 2))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encoder_of(folder, architecture: str) -> Encoder:
    if architecture == "mistral":
        return Encoder(folder, "text")
    return Encoder(folder, "vision", min_pixels=28 * 28, max_pixels=PIXELS)


def some_rows(encoder: Encoder, architecture: str):
    """Rows of different lengths, and for vision different image sizes."""
    asked = [("One?", "a"), ("What are the two of them, then?", "b + c + d"), ("x", "yes, it is")]
    if architecture == "mistral":
        records = [from_prompt("{question}", *pair) for pair in asked]
    else:
        sizes = [(28, 28), (168, 28), (56, 84)]
        records = [
            from_prompt(question, "", answer, drawing(*size))
            for (question, answer), size in zip(asked, sizes, strict=True)
        ]
    return [encoder.encode(record) for record in records]


@pytest.fixture(params=ALL)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def test_only_the_answer_and_its_end_are_predicted(tiny_base, architecture: str) -> None:
    encoder = encoder_of(tiny_base(architecture), architecture)
    rows = some_rows(encoder, architecture)
    for side in ("left", "right"):
        labels = encoder.collate(rows, answers=True, side=side)["labels"]
        wanted = ["a", "b + c + d", "yes, it is"]
        for label, answer in zip(labels.tolist(), wanted, strict=True):
            predicted = [token for token in label if token != IGNORED]
            assert predicted[-1] == encoder.end
            assert encoder.decode(predicted[:-1]) == answer


def talk(turns: Sequence[str], images: tuple[bytes, ...] = ()) -> Record:
    """A conversation of user and assistant by turns, an image before each of the first turns."""
    shown = [
        IMAGE if turn < 2 * len(images) and turn % 2 == 0 else "" for turn in range(len(turns))
    ]
    said = [image + text for image, text in zip(shown, turns, strict=True)]
    return Record(tuple(zip(cycle(("user", "assistant")), said, strict=False)), images)


def lessons(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Each answer that is learnt, after what stands before it."""
    result = [(row.prompt + row.answer, answer) for row in rows for answer in row.learnt_slices]
    return sorted((tokens[: answer.start], tokens[answer]) for tokens, answer in result)


def asked_by_turns(encoder: Encoder, record: Record) -> list[tuple[list[int], list[int]]]:
    """What a server sees at each turn, and the answer to it."""
    turns = range(1, len(record.messages), 2)
    rows = [encoder.encode(record.until(turn)) for turn in turns]
    return sorted((row.prompt, row.answer) for row in rows)


def test_every_answer_is_learnt_in_one_row(tiny_base, architecture: str) -> None:
    encoder = encoder_of(tiny_base(architecture), architecture)
    images = () if architecture == "mistral" else (drawing(168, 28), drawing(56, 84))
    record = talk(["One?", "a", "And the two of them?", "b + c", "x", "yes, it is"], images)
    (row,) = encoder.conversation(record)
    last = encoder.encode(record)
    assert (row.prompt, row.answer, row.images) == (last.prompt, last.answer, images)
    assert lessons([row]) == asked_by_turns(encoder, record)
    answers = [encoder.decode((row.prompt + row.answer)[answer]) for answer in row.learnt_slices]
    assert answers == ["a", "b + c", "yes, it is"]
    assert row.targets == sum(
        len((row.prompt + row.answer)[answer]) for answer in row.learnt_slices
    )


TEXT = st.text(st.sampled_from("ab1 \n.é中"), min_size=1, max_size=6)


@pytest.mark.parametrize("base", ["mistral", "qwen3-vl"])
@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_an_answer_is_learnt_after_what_a_server_would_see(
    tiny_base, base: str, pairs: list[tuple[str, str]]
) -> None:
    encoder = encoder_of(tiny_base(base), base)
    record = talk([text for pair in pairs for text in pair])
    assert lessons(encoder.conversation(record)) == asked_by_turns(encoder, record)


def test_training_learns_every_answer(tiny_base, tmp_path) -> None:
    folder = tiny_base("mistral")
    for split in ("train", "validation"):
        records.write(tmp_path / f"{split}.parquet", [talk(["q", "a", "r", "b"])] * 3)
    (tmp_path / "prompt.txt").write_text("{question}")
    recipe = profile("text", base=str(folder))
    base = locate(str(folder), None)
    _, _, rows, _ = load_rows(tmp_path, recipe, base)
    for split in rows.values():
        assert [len(row.learnt_slices) for row in split] == [2, 2, 2]


def test_an_answer_that_history_shows_in_another_way_has_a_row_of_its_own(tiny_base) -> None:
    thinks = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }} = "
        "{% else %}{% if loop.last %}(thought) {% endif %}{{ message.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    encoder = Encoder(tiny_base("mistral"), "text", chat_template=thinks)
    record = talk(["one", "two", "; three", "four"])
    rows = encoder.conversation(record)
    assert [encoder.decode(row.prompt + row.answer) for row in rows] == [
        "one = (thought) two",
        "one = two; three = (thought) four",
    ]
    assert lessons(rows) == asked_by_turns(encoder, record)


def test_prompt_and_answer_tokens_are_those_of_the_whole_conversation(
    tiny_base, architecture: str
) -> None:
    encoder = encoder_of(tiny_base(architecture), architecture)
    row = some_rows(encoder, architecture)[0]
    text = encoder.tokenizer.decode(row.prompt + row.answer)
    if architecture == "mistral":
        assert text == "<s>[INST] One? [/INST] a</s>"
    else:
        assert text == (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>One?<|im_end|>\n"
            "<|im_start|>assistant\na<|im_end|>"
        )


@pytest.mark.parametrize("vision", VISION)
def test_images_keep_to_the_pixel_limits(tiny_base, vision: str) -> None:
    encoder = encoder_of(tiny_base(vision), vision)
    huge = encoder.encode(from_prompt("q", "", "a", drawing(800, 600)))
    batch = encoder.collate([huge], answers=False, side="left")
    grid = batch["image_grid_thw"][0]
    assert int(grid.prod()) * 14 * 14 <= PIXELS
    assert batch["pixel_values"].shape[0] == int(grid.prod())
    assert huge.prompt.count(encoder.processor.image_token_id) == int(grid.prod()) // 4


def test_likelihood_does_not_depend_on_batch_or_padding(tiny_base, architecture: str) -> None:
    folder = tiny_base(architecture)
    encoder = encoder_of(folder, architecture)
    model = load(
        locate(str(folder), None), modality(architecture), quantization="none", dtype="float32"
    ).eval()
    rows = some_rows(encoder, architecture)

    def nothing(units: int, remark: str) -> None:
        pass

    together = hf.negative_log_likelihoods(model, encoder, rows, nothing)
    alone = [hf.negative_log_likelihoods(model, encoder, [row], nothing)[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-5)
    for row, result in zip(rows, alone, strict=True):
        batch = encoder.collate([row], answers=True, side="right")
        with torch.inference_mode():
            loss = model(**batch).loss
        assert result == pytest.approx(float(loss) * len(row.answer), rel=1e-5)
    answers = hf.answers(model, encoder, rows, 8, nothing)
    assert [answer.tokens for answer in answers] == [
        hf.answers(model, encoder, [row], 8, nothing)[0].tokens for row in rows
    ]


def test_an_answer_begins_with_the_one_space_of_its_template(tmp_path) -> None:
    encoder = Encoder(prefixing_base(tmp_path), "text")
    record = talk(["What?", "Paris", "of France?", "is"])
    (row,) = encoder.conversation(record)
    whole = "<s>[INST] What? [/INST] Paris</s>[INST] of France? [/INST] is</s>"
    assert row.prompt + row.answer == encoder.tokenizer(whole, add_special_tokens=False).input_ids
    assert lessons([row]) == asked_by_turns(encoder, record)
    assert encoder.tokenizer.convert_ids_to_tokens(row.answer) == ["\u2581is", "</s>"]


BY_LINES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Puts no space before an answer, as Zephyr's and Phi's templates."""


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("template", [BY_LINES, None], ids=["by lines", "default"])
def test_an_answers_first_token_is_that_of_the_whole_conversation(
    metaspace: bool, template: str | None, tmp_path
) -> None:
    encoder = Encoder(prefixing_base(tmp_path, template, metaspace=metaspace), "text")
    record = talk(["What?", "Paris", "of France?", "capital"])
    rows = encoder.conversation(record)
    texts = [{"role": role, "content": content} for role, content in record.messages]
    whole = encoder.tokenizer.apply_chat_template(
        texts, chat_template=encoder.chat_template, tokenize=False
    )
    tokens = encoder.tokenizer(whole.rstrip("\n"), add_special_tokens=False).input_ids
    assert [row.prompt + row.answer for row in rows] == [tokens]
    first = encoder.tokenizer.convert_ids_to_tokens(rows[0].answer[0])
    assert first.startswith("\u2581") == (template is None)


def test_what_the_template_puts_before_an_answer_is_learned_and_no_part_of_its_text(
    tiny_base,
) -> None:
    thinks = (
        "{% for m in messages %}{{ m.role }}:\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    encoder = Encoder(tiny_base("mistral"), "text", chat_template=thinks)
    row = encoder.encode(from_prompt("{question}", "Where?", "In Paris"))
    learned = encoder.tokenizer.decode(row.answer, skip_special_tokens=True)
    assert learned == "<think>\n\n</think>\n\nIn Paris"
    assert encoder.decode(row.answer) == "In Paris"
    reasoned = "<think>\nIt is in France.\n</think>\n\nIn Paris"
    assert encoder.decode(encoder.tokenizer(reasoned).input_ids) == "In Paris"
    assert encoder.decode(encoder.tokenizer("In Paris").input_ids) == "In Paris"
    plain = Encoder(tiny_base("mistral"), "text")
    assert plain.decode(plain.tokenizer(reasoned).input_ids) == reasoned


def test_a_system_turn_is_the_users_and_not_the_assistants(tmp_path) -> None:
    encoder = Encoder(prefixing_base(tmp_path), "text")
    record = Record((("system", "Be brief."), ("user", "What?"), ("assistant", "Paris")))
    row = encoder.encode(record)
    whole = "<s>[INST] Be brief.\n\nWhat? [/INST] Paris</s>"
    assert row.prompt + row.answer == encoder.tokenizer(whole, add_special_tokens=False).input_ids
    assert encoder.decode(row.answer) == "Paris"
    late = (("user", "What?"), ("system", "Be brief."), ("assistant", "Paris"))
    with pytest.raises(UserError, match="a system turn has to come right before a user turn"):
        encoder.encode(Record(late))


def test_a_base_without_a_chat_template_gets_one(tiny_base, tmp_path) -> None:
    encoder = Encoder(tiny_base("mistral"), "text")
    encoder.tokenizer.chat_template = None
    encoder.tokenizer.save_pretrained(tmp_path)
    bare = Encoder(tmp_path, "text")
    row = bare.encode(from_prompt("{question}", "One?", "a"))
    assert bare.tokenizer.decode(row.prompt) == "<s>[INST] One? [/INST]"


def test_a_template_that_does_not_end_the_answer_is_refused(tiny_base) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    encoder = Encoder(tiny_base("mistral"), "text", chat_template=template)
    with pytest.raises(UserError, match="must end the answer with </s>"):
        encoder.encode(Record((("user", "q"), ("assistant", "a"))))


def test_a_template_whose_prompt_is_no_beginning_of_the_whole_is_refused(tiny_base) -> None:
    template = (
        "{% if add_generation_prompt %}ask: {% endif %}{% for message in messages %}"
        "{{ message.content }}{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    encoder = Encoder(tiny_base("mistral"), "text", chat_template=template)
    with pytest.raises(UserError, match="render the answer right after the prompt"):
        encoder.encode(Record((("user", "q"), ("assistant", "a"))))


def test_a_tokenizer_without_an_end_token_is_refused(tiny_base, tmp_path) -> None:
    tokenizer = Encoder(tiny_base("mistral"), "text").tokenizer
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        Encoder(tmp_path, "text")


@pytest.mark.parametrize(("pad", "filler"), [("<s>", "<s>"), (None, "</s>")])
def test_rows_are_filled_with_the_pad_token_or_else_the_end(
    tiny_base, tmp_path, pad: str | None, filler: str
) -> None:
    tokenizer = Encoder(tiny_base("mistral"), "text").tokenizer
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    assert Encoder(tmp_path, "text").pad == tokenizer.convert_tokens_to_ids(filler)


def test_an_encoder_keeps_the_pixel_limits_of_its_contract(tiny_base) -> None:
    agreed = SimpleNamespace(
        modality="vision", chat_template=None, min_pixels=28 * 28, max_pixels=PIXELS
    )
    encoder = Encoder.of(agreed, SimpleNamespace(path=tiny_base("qwen3-vl")))
    size = encoder.processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (28 * 28, PIXELS)


def test_special_tokens_are_the_templates_alone(tiny_base, architecture: str) -> None:
    """A tokenizer may begin every text with a token of its own; the template has it already."""
    encoder = encoder_of(tiny_base(architecture), architecture)
    before = some_rows(encoder, architecture)
    backend = encoder.tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{encoder.tokenizer.eos_token} $A",
        special_tokens=[(encoder.tokenizer.eos_token, encoder.end)],
    )
    assert encoder.tokenizer("a").input_ids[0] == encoder.end
    assert some_rows(encoder, architecture) == before


VIDEO_PLACE = "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"


def of_videos(folder, architecture: str) -> Encoder:
    """An encoder with a chat template that has a place for videos."""
    own = encoder_of(folder, architecture)
    text = "{% else %}{{ part.text }}"
    template = own.chat_template.replace(text, VIDEO_PLACE + text)
    limits = {"min_pixels": 28 * 28, "max_pixels": PIXELS}
    return Encoder(folder, "vision", chat_template=template, **limits)


def test_a_video_needs_a_place_in_the_chat_template(tiny_base) -> None:
    encoder = encoder_of(tiny_base("qwen3-vl"), "qwen3-vl")
    film = Video((drawing(28, 28),) * 4, 1.0)
    shown = Record((("user", VIDEO + "q"), ("assistant", "a")), videos=(film,))
    with pytest.raises(UserError, match="the chat template has no place for videos"):
        encoder.encode(shown)


@pytest.mark.parametrize("architecture", VISION)
def test_images_and_videos_of_a_row_are_told_apart(tiny_base, architecture: str) -> None:
    encoder = of_videos(tiny_base(architecture), architecture)
    film = Video((drawing(56, 56),) * 4, 2.0)
    messages = (("user", f"{VIDEO}{IMAGE}What moves?"), ("assistant", "it"))
    row = encoder.encode(Record(messages, (drawing(56, 28),), (film,)))
    other = encoder.encode(from_prompt("q", "", "a", drawing(28, 28)))
    batch = encoder.collate([row, other], answers=True, side="right")
    images, videos = batch["image_grid_thw"], batch["video_grid_thw"]
    assert len(images) == 2 and videos[:, 0].tolist() == [2]
    merged = [int(grid.prod()) // 4 for grid in (images[0], videos[0])]
    kinds = batch["mm_token_type_ids"][0]
    assert [int((kinds == kind).sum()) for kind in (1, 2)] == merged
    assert len(batch["pixel_values_videos"]) == int(videos.prod())
    seconds = batch.get("second_per_grid_ts")
    assert seconds is None or seconds.tolist() == [1.0]
    assert (seconds is None) == (architecture != "qwen2.5-vl")


def test_each_answer_about_a_video_has_a_row_with_what_was_shown_before(tiny_base) -> None:
    encoder = of_videos(tiny_base("qwen3-vl"), "qwen3-vl")
    films = tuple(Video((drawing(28 * n, 28),) * 4, 1.0) for n in (1, 2))
    messages = (
        ("user", f"{VIDEO}one"),
        ("assistant", "a"),
        ("user", f"{VIDEO}two"),
        ("assistant", "b"),
    )
    record = Record(messages, videos=films)
    first, last = encoder.conversation(record)
    assert first == encoder.encode(record.until(1)) and first.videos == films[:1]
    assert last == encoder.encode(record) and last.videos == films
    assert not first.earlier and not last.earlier


def test_images_keep_their_colours(tiny_base) -> None:
    encoder = encoder_of(tiny_base("qwen3-vl"), "qwen3-vl")
    file = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "PNG")
    row = encoder.encode(from_prompt("q", "", "a", file.getvalue()))
    pixels = encoder.collate([row], answers=False, side="left")["pixel_values"]
    # One channel is full and two are empty; all three of a grey picture are alike.
    assert pixels.max() - pixels.min() > 1
