"""What plain forward hooks see, and change, at the ports that a layout names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.sites import Site


class Seen:
    """What plain forward hooks see at the ports of a layout; the library's modules do the computing.

    `change` gets (site, tensor of the port's view) and may write into the tensor.
    """

    def __init__(self, model: HuggingFaceModel, change: Callable[[Site, Tensor], None] | None = None) -> None:
        self.model, self.change = model, change
        self.values: dict[Site, Tensor] = {}
        layout = model.layout
        self.ports = {Site(kind): port for kind, port in layout.ports().items()}
        for layer, block in enumerate(layout.blocks):
            self.ports |= {Site(kind, layer): port for kind, port in block.ports().items()}

    def run(self, ids: list[int]) -> Tensor:
        """Logits [position, vocabulary] of one prompt."""
        handles = [self._hook(site, port) for site, port in self.ports.items()]
        try:
            tokens = torch.tensor([ids], device=self.model.info.device)
            logits: Tensor = self.model.module(tokens, use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits

    def _hook(self, site: Site, port: Any) -> Any:
        def after(_: Any, __: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (self._see(site, port, out[0]), *out[1:])
            return self._see(site, port, out)

        def before(_: Any, args: Any, named: dict[str, Any]) -> Any:
            if args:
                return (self._see(site, port, args[0]), *args[1:]), named
            return args, {**named, "hidden_states": self._see(site, port, named["hidden_states"])}

        module: nn.Module = port.module
        if port.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _see(self, site: Site, port: Any, value: Tensor) -> Tensor:
        copy = value.clone()
        # Some modules are handed rows and positions as one axis; with one prompt it is all positions.
        shown = port.view(copy[None] if copy.dim() == 2 else copy)
        assert shown.untyped_storage().data_ptr() == copy.untyped_storage().data_ptr(), "no view"
        if self.change is not None:
            self.change(site, shown)
        self.values[site] = shown.clone()  # what is handed on, the library may change in place
        return copy
