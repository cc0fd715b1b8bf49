"""How much memory a run will take, roughly, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mech_interp.experiments.facts import ModelFacts
    from mech_interp.orchestration.backends import Place
    from mech_interp.orchestration.models import FoundModel

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def weights_need(model: FoundModel, place: Place) -> int:
    """Bytes of the weights once they are loaded in the run's number format."""
    stated = str(model.config.get("dtype") or model.config.get("torch_dtype") or "float32")
    return model.weight_bytes * BYTES.get(place.dtype, 4) // BYTES.get(stated, 4)


def prompts_need(facts: ModelFacts, place: Place, prompts: int, tokens: int) -> int:
    """Bytes of one cached base run: residual stream, keys and values of all layers, logits of one prompt."""
    kept = facts.d_model + 2 * facts.n_kv_heads * facts.d_head
    cached = prompts * tokens * facts.n_layers * kept
    return (cached + tokens * facts.vocabulary) * BYTES.get(place.dtype, 4)


def available(device: str) -> int | None:
    """Free bytes on a device, or None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def spoken_bytes(count: int) -> str:
    """`1.2 GiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
