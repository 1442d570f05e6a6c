"""Models and pipelines on the Hugging Face Hub: the folders that `save` writes, and a card.

Needs the extra `hub`. Pages of the Hub list and show what the metadata of the card says.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vqvae2_fast
from vqvae2_fast.checkpoints.checkpoint import load, save
from vqvae2_fast.checkpoints.locate import as_path
from vqvae2_fast.files.durable import write_file
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import read_untrusted
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling import Pipeline

if TYPE_CHECKING:
    import os

    from torch import nn

__all__ = ["from_pretrained", "model_card", "push_to_hub", "read_card"]

# What a checkpoint consists of. Nothing else of a repository is downloaded.
_FILES = ("*.json", "*.safetensors")
CARD = "README.md"


def from_pretrained(
    source: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module | Pipeline:
    """The model or pipeline of a repository of the Hub, or of a local folder, as `load` gives it.

    Args:
        source: `OWNER/NAME` of a repository, or a folder. A folder of that name comes first.
        revision: Branch, tag or commit of the repository. Name a commit to get the same weights
            for ever.
        token: For private repositories; by default the one of `hf auth login`.

    Raises:
        ImportError: The source is no folder, and huggingface_hub is not installed.
        ValueError, FileNotFoundError: As `load`; or there is no such repository, or none that can
            be reached.
        TypeError: `source` is neither a name nor a path.
    """
    expected = "a folder or a repository OWNER/NAME"
    if as_path("source", source, expected).is_dir():
        return load(source, device)
    hub = _hub()
    name = str(source)
    try:
        folder = hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=list(_FILES),
        )
    except hub.errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"expected source to be {expected}, got {name!r}: there is no such "
            "folder, the Hub cannot be reached, and no copy of the repository is in its cache. "
            "Check the network, or name a folder that `save` wrote."
        ) from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise ValueError(f"expected source to be {expected}, got {name!r}: {error}") from error
    return load(folder, device)


def push_to_hub(
    model: nn.Module | Pipeline,
    repository: str,
    *,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Save a model or a pipeline to a repository of the Hub, which is made if there is none.

    Args:
        repository: `OWNER/NAME`.
        card: The text of README.md; by default that of `model_card`.
        dtype: As in `save`.
        private: Whether a new repository is seen by its owner alone.
        revision: The branch; by default main.
        token: By default the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        TypeError, ValueError: As `save`.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        save(model, folder, dtype=dtype)
        write_file(folder / CARD, (card or model_card(model, repository)).encode())
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            # Parts of an earlier model would not belong to this one.
            delete_patterns=list(_FILES),
            commit_message=f"Save by vqvae2_fast {vqvae2_fast.__version__}",
        )
    return str(commit.commit_url)


def model_card(
    model: nn.Module | Pipeline,
    repository: str,
    *,
    licence: str = "",
    data: str = "",
    metrics: dict[str, float] | None = None,
) -> str:
    """The text of a model card: metadata, what the model is, how to use it, and its measures.

    Args:
        repository: `OWNER/NAME`, from where the card says how to load the model.
        licence: An identifier of the Hub, such as `mit`.
        data: What it was trained on, in a sentence.
        metrics: Name and value of each measure, with the unit in the name.
    """
    metadata = ["---", "library_name: vqvae2_fast", "tags: [vq-vae-2, image-generation]"]
    metadata += [f"license: {json.dumps(licence)}"] * bool(licence)
    metadata += ["---", ""]
    use = ["```python", "import vqvae2_fast as vq2", ""]
    if isinstance(model, Pipeline):
        use += [
            f'pipeline = vq2.from_pretrained("{repository}")',
            "images = vq2.sample_images(pipeline, 16)  # [16, C, H, W] in [-1, 1]",
        ]
    else:
        use += [f'model = vq2.from_pretrained("{repository}")']
    lines = [*metadata, f"# {_title(model)}", "", *_parts(model), "", *use, "```"]
    if data:
        lines += ["", "## Data", data]
    if metrics:
        lines += ["", "## Measures", "| measure | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(lines) + "\n"


def read_card(folder: Path) -> str | None:
    """The text of a folder's model card without its metadata, printable; None if there is none.

    Raises:
        UntrustedFileError: README.md is not a regular file, or larger than 1 MiB.
    """
    path = folder / CARD
    if not path.exists():
        return None
    text = read_untrusted(path, 1 << 20).decode("utf-8", "replace").replace("\r\n", "\n")
    if text.startswith("---\n"):
        _, _, text = text[4:].partition("\n---\n")
    return printable(text.strip(), keep="\n")


def _title(model: nn.Module | Pipeline) -> str:
    return "VQ-VAE-2 with priors" if isinstance(model, Pipeline) else type(model).__name__


def _parts(model: nn.Module | Pipeline) -> list[str]:
    """A line for each network, and the classes."""
    if not isinstance(model, Pipeline):
        return [_part(type(model).__name__, model)]
    vqvae, priors = model.networks()
    names = level_names(len(priors))
    lines = [_part("VQ-VAE", vqvae)]
    lines += [_part(f"{name} prior", each) for name, each in zip(names, priors, strict=True)]
    if model.class_names:
        lines.append(f"- {len(model.class_names)} classes: {', '.join(model.class_names)}")
    return lines


def _part(name: str, model: nn.Module) -> str:
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    return f"- {name}: {millions:.2f} million parameters"


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed; run `pip install 'vqvae2_fast[hub]'`."
        ) from error
    return huggingface_hub
