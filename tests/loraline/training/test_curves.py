"""What a training is logged with: its cost, and how much of a card it used."""

from __future__ import annotations

import pytest

from loraline.training import curves


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_card_has_the_peak_of_its_data_sheet(card: str, peak: float | None) -> None:
    assert curves.peak_flops(card) == peak
