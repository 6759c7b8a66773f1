"""Frames of a video."""

from __future__ import annotations

import numpy as np
from made_data import turned_film

from loraline.data.reading import videos
from loraline.data.reading.media import Limits


def test_a_film_on_its_side_is_read_upright() -> None:
    frames, _ = videos.sampled(turned_film(), "film.mp4", Limits())
    for frame in frames:
        assert frame.size == (48, 64)
        shades = np.asarray(frame.convert("L"))
        assert shades[:32].mean() > 200 > 50 > shades[32:].mean()
