"""`mech validate --smoke`: does this installation work, from the device to the seal of a stored run?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mech_interp.errors import MechError
from mech_interp.orchestration.checks import Check

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.config.settings import Settings

MODEL = "tinyworld"
PROMPT = "The capital of France is"
MIXTURE = "mixtral"
"""An architecture whose tiny random model has the sites of a mixture of experts."""
REINSTALL = "Install the package again: pip install --force-reinstall mech-interpretability"


def smoke(settings: Settings) -> Iterator[Check]:
    """The checks in order; the first that fails is the last. Nothing is written but a temporary folder."""
    one = _Smoke(settings)
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("registry", one.registry),
        ("backends", one.backends),
        ("device", one.device),
        ("model", one.bundled),
        ("logits", one.logits),
        ("hooks", one.hooks),
        ("interventions", one.interventions),
        ("store", one.store),
    )
    for name, step in steps:
        try:
            yield Check(name, "ok", step())
        except Exception as error:  # whatever is wrong with an installation is this command's answer
            yield _failed(name, error)
            return


def _failed(name: str, error: Exception) -> Check:
    if isinstance(error, MechError):
        return Check(name, "failed", error.message, error.hint or REINSTALL)
    line = (str(error).strip().splitlines() or [""])[0]
    return Check(name, "failed", f"{type(error).__name__}: {line}", REINSTALL)


class _Smoke:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def registry(self) -> str:
        from mech_interp.experiments import registry

        listed = registry.listing()
        broken = [one for one in listed if one.problem]
        if broken:
            raise MechError(f"The family {broken[0].name} is broken: {broken[0].problem}", REINSTALL)
        return f"{len(listed)} families: {', '.join(one.name for one in listed)}"

    def backends(self) -> str:
        import importlib

        from mech_interp.backends.registry import BACKENDS

        there, absent = [], []
        for one in BACKENDS.values():
            if one.installed:
                importlib.import_module(one.module)
                there.append(one.name)
            else:
                absent.append(f"{one.name} ({one.install})")
        return ", ".join(there) + (f"; not installed: {', '.join(absent)}" if absent else "")

    def device(self) -> str:
        import torch

        from mech_interp.backends.huggingface.checkpoint import resolve_device

        device = resolve_device(self._settings.device)
        product = float((torch.full((4, 4), 0.5, device=device) @ torch.ones(4, 4, device=device)).sum())
        _expect(product == 32.0, f"A product of matrices on {device} gives {product}, not 32.")
        return f"{device}, torch {torch.__version__}"

    @cached_property
    def _model(self) -> InstrumentedModel:
        from mech_interp.backends.loading import load_model

        return load_model(MODEL, device=self._settings.device)

    def bundled(self) -> str:
        info = self._model.info
        return f"{info.name}: {info.architecture}, identities hold on {info.device} in {info.dtype}"

    def logits(self) -> str:
        info = self._model.info
        result = self._model.forward([PROMPT, PROMPT.partition(" of")[0]])
        assert result.logits is not None
        wanted = (2, max(result.tokens.lengths), info.vocabulary)
        found = tuple(result.logits.shape)
        _expect(found == wanted, f"The logits of {MODEL} are {found}, where {wanted} was expected.")
        last = result.logits[0, result.tokens.lengths[0] - 1].float()
        text = self._model.tokenizer.decode([int(last.argmax())]).strip()
        _expect(
            text == "Paris", f"{MODEL} answers {text!r} to {PROMPT!r}, where it was trained to say Paris."
        )
        return f"prompt × position × vocabulary = {' × '.join(map(str, found))}; {PROMPT} … {text}"

    def hooks(self) -> str:
        from mech_interp.backends.huggingface.layouts import tiny_module
        from mech_interp.backends.huggingface.opening import open_module
        from mech_interp.backends.loading import load_model
        from mech_interp.sites import KINDS

        seen = shapes(self._model) | shapes(load_model("tinyworld-llama", device="cpu"))
        seen |= shapes(open_module(tiny_module(MIXTURE), name=f"tiny {MIXTURE}"))
        unseen = sorted(set(KINDS) - set(seen))
        _expect(not unseen, f"No model shows the sites {', '.join(unseen)}.")
        return f"{len(seen)} kinds of site have their shapes"

    def interventions(self) -> str:
        from mech_interp.interventions import Intervention, Zero
        from mech_interp.sites import Site

        site = Site("mlp_out", self._model.info.n_layers - 1)
        clean = self._model.forward([PROMPT], logits="last").logits
        changed = self._model.forward(
            [PROMPT], logits="last", interventions=[Intervention(site, Zero())]
        ).logits
        again = self._model.forward([PROMPT], logits="last").logits
        assert clean is not None
        assert changed is not None
        assert again is not None
        moved = float((clean - changed).abs().max())
        _expect(moved > 1e-3, f"Zeroing {site} changes no logit of {MODEL}.")
        _expect(bool((clean == again).all()), "The same forward gives other logits the second time.")
        return f"{site} = 0 moves a logit by {moved:.2g}, and leaves nothing behind"

    def store(self) -> str:
        from mech_interp.config.settings import resolve_settings
        from mech_interp.config.spec import Spec
        from mech_interp.orchestration.runner import run_spec
        from mech_interp.storage.verify import verify

        spec = Spec.from_dict(
            {
                "name": "smoke",
                "family": "activation_capture",
                "model": MODEL,
                "device": "cpu",
                "parameters": {"prompts": [PROMPT], "layers": [0]},
            }
        )
        with tempfile.TemporaryDirectory(prefix="mech-smoke-") as scratch:
            settings = resolve_settings({"home": Path(scratch) / "runs"})[0]
            done = run_spec(spec, settings, draw=False)
            assert done.folder is not None
            _expect(done.status == "complete", f"A run of one prompt ended as {done.status}.")
            problems = verify(done.folder)
            _expect(not problems, f"A run that was just written does not verify: {problems[:1]}.")
            metrics = done.folder / "metrics.json"
            metrics.write_text(metrics.read_text(encoding="utf-8") + " ", encoding="utf-8")
            _expect(bool(verify(done.folder)), "A run whose metrics were changed still verifies.")
        return "a run was written, sealed and verified; a changed file was noticed"


def shapes(model: InstrumentedModel) -> dict[str, tuple[int, ...]]:
    """The shape of every kind of site that a model has, in the first layer that has it.

    Raises:
        MechError: a shape is not that of its kind, or a value is not finite.
    """
    import torch

    from mech_interp.sites import Site

    info = model.info
    ids = [[(7 + 5 * i) % info.vocabulary for i in range(4)]]
    sites = {}
    for kind in sorted(info.site_kinds):
        layers = (n for n in range(info.n_layers) if (kind, n) not in info.missing_sites)
        sites[kind] = Site(kind, next(layers) if _in_block(kind) else None)
    found = model.forward(ids, capture=list(sites.values())).activations
    out = {}
    for kind, site in sites.items():
        out[kind] = tuple(found[site].shape)
        wanted = (1, *(_length(axis, model) for axis in site.spec.axes))
        right = len(out[kind]) == len(wanted) and all(
            size in (None, actual) for size, actual in zip(wanted, out[kind], strict=True)
        )
        spoken = " × ".join("any" if size is None else str(size) for size in wanted)
        _expect(right, f"{site} of {info.name} has the shape {out[kind]}, where {spoken} was expected.")
        finite = bool(torch.isfinite(found[site].float()).all())
        _expect(finite or kind == "attn_scores", f"{site} of {info.name} holds values that are not finite.")
    return out


def _in_block(kind: str) -> bool:
    from mech_interp.sites import KINDS

    return KINDS[kind].in_block


def _length(axis: str, model: InstrumentedModel) -> int | None:
    """How long an axis of four tokens is; None where only the model knows (experts)."""
    info = model.info
    sizes = {
        "position": 4,
        "key": 4,
        "head": info.n_heads,
        "kv_head": info.n_kv_heads,
        "d_model": info.d_model,
        "d_head": info.d_head,
        "d_mlp": info.d_mlp,
        "vocab": info.n_outputs,
    }
    return sizes.get(axis)


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise MechError(sentence, REINSTALL)


def passes(checks: list[Check]) -> bool:
    """Whether all of them ran and none failed."""
    return bool(checks) and all(check.status == "ok" for check in checks)
