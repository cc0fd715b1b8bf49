"""What the runs of one process share: the store, hashes of files, opened models, the environment."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.errors import ModelError
from mech_interp.orchestration.backends import require_of_model
from mech_interp.orchestration.hashes import CACHE, FileHashes
from mech_interp.orchestration.models import FoundModel, find_model

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.config.settings import Settings
    from mech_interp.orchestration.prepare import Prepared
    from mech_interp.storage import Store


class Session:
    """One process's working memory; `run_spec` makes its own where none is given.

    `cache_home` keeps the hashes of files, by default beside the runs.
    """

    def __init__(self, settings: Settings, *, cache_home: Path | None = None) -> None:
        self.settings = settings
        self._cache_home = cache_home or settings.home
        self._found: dict[tuple[str, str | None], FoundModel] = {}
        self._opened: tuple[tuple[str, ...], InstrumentedModel] | None = None
        self._adopted = False

    @cached_property
    def store(self) -> Store:
        """The runs, in the folder that the settings name; made if it is missing."""
        from mech_interp.storage import Store

        return Store(self.settings.home)

    @cached_property
    def hashes(self) -> FileHashes:
        """Hashes of model files, kept beside the runs."""
        return FileHashes(self._cache_home / CACHE)

    def find(self, name: str, revision: str | None) -> FoundModel:
        """The model called `name`, found and hashed; its tokenizer is loaded at most once.

        Raises:
            ModelError: see `find_model`.
        """
        fresh = find_model(
            name,
            revision=revision,
            aliases=self.settings.aliases,
            offline=self.settings.offline,
            hashes=self.hashes,
        )
        known = self._found.get((name, revision))
        # The files may have changed since: only an equal finding is the same model.
        if known is None or (known.weights_hash, known.tokenizer_hash) != (
            fresh.weights_hash,
            fresh.tokenizer_hash,
        ):
            known = self._found[name, revision] = fresh
        return known

    def load(self, prepared: Prepared) -> InstrumentedModel:
        """The opened model of a run; the latest one is kept for the next run that needs the same.

        Raises:
            ModelError, IdentityError: see `load_model`; also when the files are not those of the run key.
            CapabilityError: the family needs what this model cannot do on its backend.
        """
        found, place = prepared.model, prepared.place
        wanted = (
            found.weights_hash,
            found.tokenizer_hash,
            found.name,
            prepared.backend.name,
            place.device.removesuffix(":0"),
            place.dtype,
            place.attention,
        )
        if self._opened is None or self._opened[0] != wanted:
            self._let_go()  # the old one goes before the new one comes: memory may hold only one
            model = prepared.backend.load(found, place)
            self._opened = (wanted, model)
            if model.info.weights_hash != found.weights_hash:
                self._let_go()
                raise ModelError(
                    f"The files of {found.name} have changed since they were hashed.",
                    "Run the same command again.",
                )
        model = self._opened[1]
        require_of_model(model, prepared.family.needs, prepared.family.name)
        return model

    def adopt(self, model: InstrumentedModel) -> None:
        """Use an opened model for the runs that need just this one; closing it stays with the caller."""
        self._let_go()
        self._adopted = True
        info = model.info
        wanted = (info.weights_hash, info.tokenizer_hash, info.name, info.backend)
        self._opened = ((*wanted, info.device.removesuffix(":0"), info.dtype, info.attention), model)

    def environment(self) -> dict[str, Any]:
        """Code, packages, machine: as receipts record them (see `storage.environment`)."""
        return copy.deepcopy(self._environment)

    @cached_property
    def _environment(self) -> dict[str, Any]:
        from mech_interp.storage import environment

        return environment()

    def close(self) -> None:
        """Let go of the store and the model."""
        self._let_go()
        if "store" in vars(self):
            self.store.close()

    def _let_go(self) -> None:
        """Close the model, if it was opened here: a backend gives back what opening changed."""
        opened, adopted = self._opened, self._adopted
        self._opened, self._adopted = None, False
        close = getattr(opened[1], "close", None) if opened is not None and not adopted else None
        if callable(close):
            close()
