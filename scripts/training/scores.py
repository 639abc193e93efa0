"""Scores of a checkpoint on labelled sets, and a sheet of its masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffseg.measure.overlap import Overlap, covering
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffusers import StableDiffusionPipeline
from network import TIMESTEP, Probe, empty_prompt, probe
from PIL import Image
from torch import Tensor

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


@torch.no_grad()
def attention_of(
    image: Image.Image, pipeline: StableDiffusionPipeline, prompt: Tensor, probes: list[list[Probe]]
) -> np.ndarray:
    """Return the aggregated self-attention (64, 64, 64, 64) of an image stretched to 512 × 512."""
    square = torch.from_numpy(np.array(image.resize((512, 512), Image.Resampling.BILINEAR)))
    vae = pipeline.vae
    latent = vae.encode(square.permute(2, 0, 1)[None] / 127.5 - 1).latent_dist.mean
    pipeline.unet(latent * vae.config.scaling_factor, TIMESTEP, prompt)
    maps = [sum(p.maps(1, slice(None))[0] for p in layers) / len(layers) for layers in probes]
    return aggregate_attention([m.numpy() for m in maps])


def evaluate(checkpoint: Path, dev: Path, work: Path, images: int, shown: float) -> None:
    """Print covering and number of masks on the labelled sets; draw the masks at one threshold."""
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    prompt, probes, panels = empty_prompt(pipeline), probe(pipeline.unet), []
    print("covering (masks) at " + " ".join(f"{t:>12}" for t in THRESHOLDS))
    for name in ("cocostuff", "bsds500", "camvid"):
        files = sorted((dev / name / "images").glob("*.jpg"))
        scores = []
        for file in files[:: len(files) // images][:images]:
            image = Image.open(file).convert("RGB")
            truth = np.asarray(Image.open(dev / name / "labels" / f"{file.stem}.png"))
            attention = attention_of(image, pipeline, prompt, probes)
            for threshold in THRESHOLDS:
                proposals = merge_attention(attention, thresholds=(threshold,) * 3, anchors=16)
                labels = non_max_suppression(proposals, size=(512, 512)).astype(np.int32)
                labels = Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)
                labels = np.asarray(labels)
                scores.append((covering(Overlap.of(truth, labels)), len(np.unique(labels))))
                if threshold == shown:
                    panels.append(panel(np.asarray(image), labels))
        means = np.reshape(scores, (-1, len(THRESHOLDS), 2)).mean(0)
        print(f"{name:>19} " + " ".join(f"{s:.3f} ({c:4.1f})" for s, c in means), flush=True)
    rows = [np.concatenate(panels[i : i + 4], 1) for i in range(0, len(panels) // 4 * 4, 4)]
    Image.fromarray(np.concatenate(rows)).save(work / "overlays.png")


def panel(photo: np.ndarray, labels: np.ndarray, size: int = 240) -> np.ndarray:
    """Return the image beside its masks, (size, 2 size, 3)."""
    colours = np.random.default_rng(3).integers(0, 256, (int(labels.max()) + 1, 3))
    mixed = (0.35 * photo + 0.65 * colours[labels]).astype(np.uint8)
    pair = (Image.fromarray(x).resize((size, size)) for x in (photo, mixed))
    return np.concatenate([np.asarray(x) for x in pair], 1)
