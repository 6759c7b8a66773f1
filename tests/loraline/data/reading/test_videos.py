"""Frames of a video."""

from __future__ import annotations

import numpy as np
from made_data import cut_film, turned_film

from loraline.data.reading import videos
from loraline.data.reading.media import Limits


def test_a_film_on_its_side_is_read_upright() -> None:
    frames, _ = videos.sampled(turned_film(), "film.mp4", Limits())
    for frame in frames:
        assert frame.size == (48, 64)
        shades = np.asarray(frame.convert("L"))
        assert shades[:32].mean() > 200 > 50 > shades[32:].mean()


def test_a_film_that_was_cut_is_read_from_its_new_beginning() -> None:
    frames, _ = videos.sampled(cut_film(), "film.mp4", Limits())
    shades = [np.asarray(frame).mean() for frame in frames]
    assert len(frames) == 4
    assert shades == sorted(shades) and shades[0] > 60
