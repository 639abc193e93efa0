"""The training images of the embedded model: their pools, region hierarchies, and batches of crops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffseg.engines.files import atomic_file
from hierarchy import RECIPES, affinity, distances, learn_textons, superpixels
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset, get_worker_info

# The example images of the package are never used for training.
HELD_OUT = ("grey_sloth_plushie_", "robot_toy_", "fancy_boot_", "food_0000058.")
# Two thirds of the images show food, so a pool is drawn first, then one of its images.
POOLS = {
    "food_cc": 0.35,
    "openimages_ccby": 0.3,
    "dreambooth_ccby": 0.17,
    "unsplash": 0.13,
    "kodak": 0.05,
}
LATE = 0.6  # full-size images are frequent after this share of the training


def training_files(data: Path) -> dict[str, list[Path]]:
    """Return the images of each pool, without those held out."""
    files = {pool: sorted((data / pool).glob("*.jpg")) for pool in POOLS}
    return {p: [f for f in fs if not f.name.startswith(HELD_OUT)] for p, fs in files.items()}


def cache_hierarchy(job: tuple[Path, Path, np.ndarray]) -> None:
    """Compute the hierarchy of an image and save it as .npz."""
    source, target, textons = job
    found = superpixels(np.asarray(Image.open(source).convert("RGB")), textons)
    far = np.stack([distances(found, recipe) for recipe in RECIPES]).astype(np.float16)
    with atomic_file(target) as temporary, temporary.open("wb") as stream:
        np.savez(stream, pixels=found.labels.astype(np.uint16), far=far)


def cache_hierarchies(data: Path, cache: Path) -> None:
    """Compute the missing hierarchies of all images on all cores, which takes about 15 minutes on two cores."""
    cache.mkdir(parents=True, exist_ok=True)
    pools = training_files(data)
    files = [file for pool in sorted(pools.values(), key=len) for file in pool]
    if not (cache / "textons.npy").exists():
        np.save(cache / "textons.npy", learn_textons(files[::9]))
    textons = np.load(cache / "textons.npy")
    jobs = [(file, cache / f"{file.stem}.npz", textons) for file in files]
    jobs = [job for job in jobs if not job[1].exists()]
    with Pool() as workers:
        for done, _ in enumerate(workers.imap_unordered(cache_hierarchy, jobs, 4), 1):
            if done % 100 == 0:
                print(f"hierarchies {done}/{len(jobs)}", flush=True)


class Batch(NamedTuple):
    """Crops of one size, and the affinities of their places."""

    images: Tensor  # (B, 3, size, size) in [-1, 1]
    pixels: Tensor  # (B, size/8, size/8) int64: superpixel of each latent cell
    affinity: Tensor  # (B, n, n) uint8, of 255: share of the levels at which two superpixels are one region

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


class Photographs(IterableDataset[Batch]):
    """All images, superpixels and affinities in memory. It yields endless batches of random crops."""

    def __init__(self, data: Path, cache: Path, seed: tuple[int, int], factor: int) -> None:
        """`seed` is (step, process); `factor` multiplies the batches of `draw_size`."""
        self.seed, self.factor = seed, factor
        self.progress = torch.zeros(()).share_memory_()  # of the training, read by the loader's workers
        self.pools: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for files in training_files(data).values():
            self.pools.append([])
            for file in files:
                image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
                arrays = np.load(cache / f"{file.stem}.npz")
                pixels = torch.from_numpy(arrays["pixels"].astype(np.int16))
                self.pools[-1].append((image, pixels, torch.from_numpy(affinity(arrays["far"]))))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches whose sizes are the same in all processes, so that none waits for another."""
        worker = get_worker_info()
        number = worker.id if worker else 0
        common = np.random.default_rng((self.seed[0], number))
        own = np.random.default_rng((*self.seed, number))
        while True:
            size, count = draw_size(self.progress.item(), common)
            crops = [self.crop(size, own) for _ in range(count * self.factor)]
            images, pixels, affinities = zip(*crops, strict=True)
            most = max(len(a) for a in affinities)
            padded = [functional.pad(a, (0, most - len(a), 0, most - len(a))) for a in affinities]
            yield Batch(torch.stack(images), torch.stack(pixels), torch.stack(padded))

    def crop(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return image (3, size, size), superpixels (size/8, size/8) and affinity (n, n)."""
        pool = self.pools[rng.choice(len(POOLS), p=list(POOLS.values()))]
        image, pixels, affinity = pool[rng.integers(len(pool))]
        # Draw the sides independently, because the runtime also stretches every image to a square.
        least = 0.5 if size < 384 else 0.75
        high, wide = (round(side * rng.uniform(least, 1)) for side in pixels.shape)
        top = rng.integers(pixels.shape[0] - high + 1)
        left = rng.integers(pixels.shape[1] - wide + 1)
        window = (slice(top, top + high), slice(left, left + wide))
        image = image[None, :, *window].float() / 127.5 - 1
        image = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)[0]
        pixels = shrink(pixels[None, *window].long(), size // 8)[0]
        if rng.random() < 0.5:
            image, pixels = image.flip(-1), pixels.flip(-1)
        return recolour(image, rng), pixels, affinity


def recolour(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and colours of (3, H, W) in [-1, 1]. The affinities stay valid."""
    if rng.random() < 0.5:
        image = (image / 2 + 0.5).clamp(0, 1) ** math.exp(rng.uniform(-0.35, 0.35)) * 2 - 1
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * (0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4))
    tint = torch.tensor(rng.uniform(-0.08, 0.08, (3, 1, 1)) + rng.uniform(-0.12, 0.12))
    return (image * rng.uniform(0.75, 1.2) + tint.float()).clamp(-1, 1)


def shrink(labels: Tensor, side: int) -> Tensor:
    """Resize integer labels (B, h, w) to (B, side, side) by nearest neighbour."""
    grid = labels[:, None].float()
    return functional.interpolate(grid, (side, side), mode="nearest-exact")[:, 0].long()


def draw_size(progress: float, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the size of the crops and their number: small crops first, later more of full size, as at run time."""
    chances = (0.5, 0.2, 0.3) if progress > LATE else (0.85, 0.1, 0.05)
    return ((256, 3), (384, 2), (512, 1))[rng.choice(3, p=chances)]
