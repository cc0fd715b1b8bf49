"""From a name to an opened model: bundled checkpoint, local folder, alias, or hub id.

Bundled and local loads never touch the network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mech_interp.errors import InputError, ModelError, nearest

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel

BUNDLED = ("tinyworld", "tinyworld-llama", "tinyworld-chat")
# Seconds that reaching the hub may take before it counts as unreachable.
HUB_PATIENCE = 4.0
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    revision: str | None = None,
    allow_pickle: bool = False,
    aliases: Mapping[str, str] | None = None,
    backend: str = "huggingface",
) -> InstrumentedModel:
    """Load and open a model.

    Args:
        name: a bundled checkpoint, a folder with ``config.json`` and safetensors weights, an alias, or a
            hub id such as ``gpt2``. Folders and bundled names win over hub ids.
        device: ``auto`` takes cuda, then mps, then cpu.
        dtype: ``auto`` is the checkpoint's own on a GPU and float32 on a CPU; or float32, float64,
            bfloat16, float16.
        attention: ``sdpa`` (fused) or ``eager``; a backend that has one way only takes that.
        revision: branch, tag or commit of a hub id.
        allow_pickle: also read ``.bin`` weights, which can run code when opened.
        aliases: short names for other names.
        backend: what runs it: ``huggingface``, ``hooks``, ``transformerlens``, ``nnsight`` or ``mlx``.

    Raises:
        InputError: there is no such backend.
        MissingExtraError: the backend's package is not installed.
        ModelError: when it cannot be found, reached, read or trusted.
        IdentityError: when an identity fails.
    """
    from mech_interp.backends.registry import built_in

    chosen = built_in(backend)
    chosen.require()
    wanted = (aliases or {}).get(name, name)
    folder = find_folder(wanted, revision)
    return chosen.open_folder(
        folder,
        name=folder.resolve().name if Path(wanted).expanduser().is_dir() else name,
        source="bundled" if bundled_folder(wanted) == folder else str(wanted),
        device=device,
        dtype=dtype,
        attention=attention,
        allow_pickle=allow_pickle,
    )


def find_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds a model's files; hub ids are fetched into the hub's own cache.

    Raises:
        ModelError: when there is no such model, or the hub cannot be reached.
    """
    if not name.strip():
        raise InputError("The model name is empty.", offline_hint())
    bundled = bundled_folder(name)
    if bundled is not None:
        return bundled
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "cfg.json")):
            raise ModelError(
                f"The folder {name} holds no config.json, so it is not a Hugging Face checkpoint.",
                "Point at the folder with config.json and model.safetensors.",
            )
        return path
    if path.exists():
        raise ModelError(f"{name} is a file.", "Give the folder that holds config.json and the weights.")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_like_path:
        raise ModelError(f"There is no folder {name}.", offline_hint())
    return _from_hub(name, revision)


def bundled_folder(name: str) -> Path | None:
    """The folder of a bundled checkpoint; None for any other name.

    Raises:
        ModelError: when the checkpoint is missing from this installation.
    """
    if name not in BUNDLED:
        return None
    folder = Path(str(resources.files("mech_interp"))) / "bundled" / "checkpoints" / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"The bundled checkpoint {name!r} is missing from this installation.",
            f"Reinstall the package, or make it with: python -m mech_interp.bundled.train {name}",
        )
    return folder


def offline_hint(name: str = "") -> str:
    """What works without a network, with the nearest bundled name first."""
    close = nearest(name, BUNDLED) if name else ""
    works = f"Without a network these work: {', '.join(BUNDLED)}, or the path of a local folder."
    return f"{close} {works}".strip()


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(
            snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES, local_files_only=True)
        )
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    except HFValidationError:
        raise ModelError(f"{name!r} is neither a folder nor a possible hub id.", offline_hint(name)) from None
    except LocalEntryNotFoundError:
        pass
    _check_reachable(name)
    return _download(name, revision)


def _check_reachable(name: str) -> None:
    """Ask the hub for one header, in a thread, since name lookup obeys no time limit."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE") or constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name!r} is not on this machine and HF_HUB_OFFLINE is set.", offline_hint(name))
    problem: list[str] = ["no answer"]

    def ask() -> None:
        import socket
        from urllib.parse import urlsplit
        from urllib.request import getproxies

        endpoint = urlsplit(constants.ENDPOINT)
        # Behind a proxy the hub itself cannot be reached directly, and need not be.
        address = urlsplit(getproxies().get(endpoint.scheme, constants.ENDPOINT))
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=HUB_PATIENCE).close()
            problem.clear()
        except Exception as error:
            problem[:] = [str(error) or type(error).__name__]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    if problem:
        raise ModelError(
            f"{name!r} is not on this machine and the model hub cannot be reached ({problem[0]}).",
            offline_hint(name),
        )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES))
    except GatedRepoError:
        raise ModelError(
            f"{name!r} is gated on the hub.", "Accept its terms there, then log in with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"There is no model {name!r} on the hub.", offline_hint(name)) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name!r} has no revision {revision!r}.", "Leave out the revision.") from None
    except Exception as error:
        raise ModelError(
            f"Fetching {name!r} from the hub failed ({type(error).__name__}: {error}).", offline_hint(name)
        ) from error
