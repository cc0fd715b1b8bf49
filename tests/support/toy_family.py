"""A family of experiments that needs no model: units of random numbers, as fast or slow as a test wants."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mech_interp.config.settings import Settings
from mech_interp.config.spec import Spec
from mech_interp.errors import InputError
from mech_interp.experiments import registry
from mech_interp.experiments.family import Family, FamilyParams
from mech_interp.experiments.result import Control, Finding, Metric, Result

CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 10, "n_positions": 16}


class ToyParams(FamilyParams):
    units: int = Field(default=4, ge=1, description="Pieces of work.")
    pause: float = Field(default=0.0, ge=0, description="Seconds that each takes.")
    size: int = Field(default=3, ge=1, description="Numbers in each.")
    layer: int = Field(default=0, description="A layer of the model.")
    sane: bool = Field(default=True, description="Whether the sanity control holds.")
    trouble: str | None = Field(default=None, description="What goes wrong: mech, bug, memory.")
    shift: float = Field(default=0.0, description="Added to every number.")
    noise: bool = Field(default=False, description="Draw from no seed at all.")
    draw: bool = Field(default=False, description="Draw a figure.")


class Toy(Family[ToyParams]):
    name, version, summary = "toy", 1, "Means of random numbers."
    Params = ToyParams

    def check(self, params: ToyParams, facts: Any, tokenizer: Any) -> None:
        facts.check_layer(params.layer, "parameters.layer")

    def run(self, context: Any) -> Result:
        params = context.params
        means, kept = {}, []
        for index, found in enumerate(
            context.each(range(params.units), lambda i: f"unit-{i}", lambda i: self._unit(context, i))
        ):
            means[f"group-{index}"] = found["mean"]
            kept.append(found["values"])
            if params.trouble and index >= params.units // 2:
                _trouble(params.trouble)
        mean = float(np.mean(list(means.values())))
        return self._result(params, mean, means, np.stack(kept))

    def _unit(self, context: Any, index: int) -> dict[str, Any]:
        time.sleep(context.params.pause)
        generator = np.random.default_rng() if context.params.noise else context.generator(index)
        values = generator.normal(size=context.params.size) + context.params.shift
        return {"mean": float(values.mean()), "values": values}

    def _result(self, params: ToyParams, mean: float, means: dict[str, float], kept: Any) -> Result:
        views: dict[str, Any] = {}
        if params.draw:
            from mech_interp.views import Bars

            views["bars"] = Bars(
                title="Means",
                labels=list(means),
                values=list(means.values()),
                label_axis="unit",
                value_label="mean",
            )
        return Result(
            question="What is the mean?",
            method="Numbers were drawn and averaged.",
            metrics={
                "mean": Metric(
                    value=mean,
                    n=params.units * params.size,
                    interval=(mean - 1, mean + 1),
                    unit="points",
                    per_group=means,
                    control={"name": "another seed", "value": 0.25},
                ),
                "count": Metric(value=float(params.units), n=params.units, unit="units", reason=""),
            },
            tables={"units": [{"unit": name, "mean": value} for name, value in means.items()]},
            tensors={"values": kept, "activations.drawn": kept * 2},
            views=views,
            findings=[Finding("The mean was found.", ["mean", "units"], ["identity"])],
            controls=[Control("identity", "0", 0.0 if params.sane else 1.0, params.sane, sanity=True)],
            caveats=["Another generator."],
        )


def _trouble(what: str) -> None:
    if what == "mech":
        raise InputError("The toy broke.", "Mend it.")
    if what == "memory":
        raise MemoryError
    raise ZeroDivisionError("a bug")


TOY = Toy()
_real_get = registry.get


def install() -> None:
    """Let the registry know the toy."""
    registry.get = lambda name: TOY if name == "toy" else _real_get(name)  # type: ignore[assignment]


def uninstall() -> None:
    """Undo `install`."""
    registry.get = _real_get


def checkpoint(folder: Path, content: bytes = b"weights") -> Path:
    """A folder that looks like a checkpoint until its weights are opened."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(content)
    return folder


def settings(home: Path, **changes: Any) -> Settings:
    """Settings that depend on nothing outside the test."""
    return Settings(home=home, device="cpu", offline=True, **changes)


def spec(model: Path, **changes: Any) -> Spec:
    """A toy spec; parameters may be given by name."""
    top = {key: changes.pop(key) for key in list(changes) if key in Spec.model_fields}
    data = {"name": "toy-run", "family": "toy", "model": str(model), "device": "cpu", **top}
    return Spec.from_dict({**data, "parameters": {**data.get("parameters", {}), **changes}})
