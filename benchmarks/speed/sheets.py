"""Peak performance of NVIDIA cards by their data sheets.

Figures are for matrix products without sparsity, with float32 accumulation, at the boost clock: "fp32" without tensor
cores, the other formats with them. A sheet's figure with sparsity is halved. Sources: NVIDIA's data sheets
"H100 Tensor Core GPU", "H200 Tensor Core GPU", "A100 Tensor Core GPU", "L40S GPU", "L4 Tensor Core GPU", "A10 Tensor
Core GPU", "T4 Tensor Core GPU", "V100 Tensor Core GPU" and "V100S"; for GeForce the appendices of the white papers
"Ampere GA102 GPU Architecture", "Ada GPU Architecture" and "RTX Blackwell GPU Architecture". A card of the same name
with other memory or clocks, such as "H100 80GB HBM2e", "A10G" or "RTX 4090 D", is unknown here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peaks:
    """Limits of a card by its data sheet.

    Attributes:
        bandwidth: bytes per second of its memory.
        flops: floating-point operations per second by number format, for the formats that the card has.
    """

    bandwidth: float
    flops: dict[str, float]


def peaks(name: str) -> Peaks | None:
    """Return the peaks of a card by torch's name of it; None for an unknown card and for a slice of a card (MIG)."""
    return _SHEETS.get(name.removeprefix("NVIDIA ").removeprefix("Tesla "))


def _peaks(gigabytes: float, fp32: float, tf32: float | None, fp16: float, bf16: float | None) -> Peaks:
    """Convert GB/s and TFLOP/s to `Peaks`."""
    formats = {"fp32": fp32, "tf32": tf32, "fp16": fp16, "bf16": bf16}
    return Peaks(1e9 * gigabytes, {name: 1e12 * value for name, value in formats.items() if value is not None})


_SHEETS = {
    "H100 80GB HBM3": _peaks(3350, 67, 494.7, 989.4, 989.4),  # SXM
    "H100 PCIe": _peaks(2000, 51, 378, 756.5, 756.5),
    "H100 NVL": _peaks(3900, 60, 417.5, 835.5, 835.5),
    "H200": _peaks(4800, 67, 494.7, 989.4, 989.4),  # SXM
    "H200 NVL": _peaks(4800, 60, 417.5, 835.5, 835.5),
    "A100-SXM4-40GB": _peaks(1555, 19.5, 156, 312, 312),
    "A100-SXM4-80GB": _peaks(2039, 19.5, 156, 312, 312),
    "A100-PCIE-40GB": _peaks(1555, 19.5, 156, 312, 312),
    "A100 80GB PCIe": _peaks(1935, 19.5, 156, 312, 312),
    "L40S": _peaks(864, 91.6, 183, 362, 362),
    "L4": _peaks(300, 30.3, 60, 121, 121),
    "A10": _peaks(600, 31.2, 62.5, 125, 125),
    "T4": _peaks(320, 8.1, None, 65, None),
    "V100-SXM2-16GB": _peaks(900, 15.7, None, 125, None),
    "V100-SXM2-32GB": _peaks(900, 15.7, None, 125, None),
    "V100-PCIE-16GB": _peaks(900, 14, None, 112, None),
    "V100-PCIE-32GB": _peaks(900, 14, None, 112, None),
    "V100S-PCIE-32GB": _peaks(1134, 16.4, None, 130, None),
    "GeForce RTX 3090": _peaks(936, 35.6, 35.6, 71, 71),
    "GeForce RTX 4090": _peaks(1008, 82.6, 82.6, 165.2, 165.2),
    "GeForce RTX 5090": _peaks(1792, 104.8, 104.8, 209.5, 209.5),
}
