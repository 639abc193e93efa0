"""Find the files of a checkpoint and check that it can be exported. This module does not need PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.bundle.hub import is_hub_id, snapshot
from diffseg.engines.bundle.specs import LATENT_FACTOR
from diffseg.engines.errors import BundleNotFoundError, CheckpointError
from diffseg.engines.files import expand_user
from diffseg.export.supported import SUPPORTED, check_index, check_unet, read_config

PARTS = ("unet", "vae", "text_encoder", "tokenizer")
SDXL_PARTS = (*PARTS, "text_encoder_2", "tokenizer_2")
VAES = ("AutoencoderKL", "AutoencoderTiny")
SMALL_FILES = ["*.json", "*.txt", "README.md"]
WEIGHTS: tuple[tuple[str, list[str]], ...] = (
    ("*.safetensors", ["*.fp16*"]),
    ("*.safetensors", []),
    ("*.bin", []),
)
"""Files of weights on the hub, and files that are ignored. The first format that exists is downloaded."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint with a supported configuration. Its weights have not been read."""

    name: str  # hub id, or the folder's name
    revision: str | None  # on the hub; None for a folder
    folder: Path
    vae: Path  # folder of the VAE, which may belong to another checkpoint
    vae_kind: str  # class of the VAE, one of VAES
    sdxl: bool = False  # SDXL-class: two text encoders, of which one also conditions the time embedding
    native_size: int = 512  # side of the images that the UNet was trained for, in pixels


def find_checkpoint(checkpoint: str | Path, *, vae: str | Path | None = None) -> CheckpointFiles:
    """Find a diffusers checkpoint, in a folder or on the hub (`owner/name[@revision]`), and check its configuration.

    The configuration is checked before any weights are downloaded.

    Args:
        checkpoint: folder with `unet/`, `vae/`, `text_encoder/` and `tokenizer/`, for an SDXL-class checkpoint also
            `text_encoder_2/` and `tokenizer_2/`; or a hub id.
        vae: folder or hub id of another autoencoder for the same latents, such as TAESD or TAESDXL.

    Raises:
        CheckpointError: the checkpoint is not found, has missing or unreadable parts, or is not supported.
    """
    folder, revision = _resolve(checkpoint, required=["model_index.json"])
    check_index(folder)
    if revision:  # the first download may have been interrupted
        _resolve(checkpoint, required=[f"{part}/*.json" for part in PARTS if not (part == "vae" and vae)])
    _check_parts(folder, PARTS, vae)
    unet = check_unet(folder)
    sdxl = unet.get("addition_embed_type") is not None
    parts = SDXL_PARTS if sdxl else PARTS
    _check_parts(folder, parts, vae)
    # Record only the name of a folder, because its path means nothing on another machine.
    name = str(checkpoint).partition("@")[0] if revision else folder.resolve().name
    if revision:
        with_weights = [p for p in parts if not p.startswith("tokenizer") and not (p == "vae" and vae)]
        folder = _fetch(f"{name}@{revision}", folder, [f"{part}/" for part in with_weights])
    vae_folder = _resolve_vae(vae) if vae else folder / "vae"
    kind = read_config(vae_folder, "config.json").get("_class_name")
    if kind not in VAES:
        raise CheckpointError(f"{vae_folder} is a {kind}, expected {' or '.join(VAES)}")
    side = unet.get("sample_size")
    native = side * LATENT_FACTOR if isinstance(side, int) else 512
    return CheckpointFiles(name, revision, folder, vae_folder, kind, sdxl, native)


def _check_parts(folder: Path, parts: tuple[str, ...], vae: str | Path | None) -> None:
    missing = [part for part in parts if not (folder / part).is_dir() and not (part == "vae" and vae)]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(f'{part}/' for part in missing)}; pass a diffusers checkpoint ({SUPPORTED})"
        )


def _resolve(checkpoint: str | Path, required: list[str]) -> tuple[Path, str | None]:
    """Return a checkpoint's folder, or the folder of the small files of a hub repository, and its revision.

    If the hub's cache lacks a `required` file, the small files are downloaded.
    """
    folder = expand_user(checkpoint)
    if folder.is_dir():
        return folder, None
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file; single-file checkpoints must be converted to a diffusers folder first"
        )
    if not is_hub_id(str(checkpoint)):
        raise CheckpointError(f"no checkpoint {str(checkpoint)!r}: neither a folder nor a hub id (owner/name)")
    try:
        found = snapshot(str(checkpoint), SMALL_FILES, required=required)
    except BundleNotFoundError as error:
        raise CheckpointError(str(error)) from None
    return found.folder, found.revision


def _resolve_vae(vae: str | Path) -> Path:
    """Return the folder of a VAE: the named folder, or its `vae/`."""
    folder, revision = _resolve(vae, required=["**/config.json"])
    alone = (folder / "config.json").is_file()
    if revision:
        name = f"{str(vae).partition('@')[0]}@{revision}"
        folder = _fetch(name, folder, ["diffusion_pytorch_model" if alone else "vae/"])
    return folder if alone else folder / "vae"


def _fetch(name: str, folder: Path, beginnings: list[str]) -> Path:
    """Download the weights whose paths have these beginnings, each in the first format that exists."""
    for ending, ignored in WEIGHTS:
        lacking = [b for b in beginnings if not any(_any(folder, f"{b}{end}") for end, _ in WEIGHTS)]
        if lacking:
            patterns = [f"{beginning}{ending}" for beginning in lacking]
            try:
                folder = snapshot(name, patterns, required=patterns, ignored=ignored).folder
            except BundleNotFoundError as error:
                raise CheckpointError(str(error)) from None
    return folder


def _any(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None
