"""Train the embedded model: a Stable-Diffusion-shaped VAE and UNet small enough for a 2-core CPU.

    python scripts/train_tiny.py --data ../shared/data/train --dev ../shared/data/dev \
        --work DIR --minutes 60
    python scripts/train_tiny.py --dev ../shared/data/dev --work DIR --evaluate DIR/checkpoint

The first command builds region hierarchies, trains, writes the diffusers checkpoint DIR/checkpoint
and scores it; started again after a kill, it goes on where it stopped. Training sees no labels:

1. Each photograph is cut into superpixels (SLIC), which are merged three times by Ward's cost
   between neighbours, with different weights of lightness, texture and area. The share of levels
   and hierarchies at which two places lie in one region is their affinity.
2. The UNet sees clean latents at the segmentation timestep, where the rows of every self-attention
   should be softmax((affinity - 1) / TEMPERATURE), and noised latents, for the v-prediction loss.
   At first the VAE learns too, from its reconstruction loss and from the attention's gradient.

Needs the export extra (torch, diffusers, transformers), scikit-image, scipy and pillow.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin starve each other on a shared CPU

import numpy as np
import torch
from diffseg.runtime.aggregate import aggregate_attention
from diffseg.runtime.merge import merge_attention
from diffseg.runtime.suppress import non_max_suppression
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from make_checkpoint import write_tokenizer
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab
from skimage.segmentation import slic
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

# Example pictures of the package: never trained on.
HELD_OUT = ("grey_sloth_plushie_", "robot_toy_", "fancy_boot_", "food_0000058.")
# Two thirds of the pictures are food: the pool is drawn first, then one of its pictures.
POOLS = {
    "food_cc": 0.35,
    "openimages_ccby": 0.3,
    "dreambooth_ccby": 0.17,
    "unsplash": 0.13,
    "kodak": 0.05,
}
# (weight of lightness, weight of texture, exponent of the area in Ward's cost) of each hierarchy
HIERARCHIES = ((0.5, 1.0, 0.75), (0.3, 1.5, 0.5), (0.7, 0.6, 1.0))
FINEST = 48  # regions of the finest level kept on disk
LEVELS = {3: 1.0, 5: 1.5, 8: 1.5, 12: 1.5, 20: 1.0, 40: 1.0}  # regions: weight in the affinity
TEMPERATURE = 0.12
TIMESTEP = 300
QUERIES = 192  # random rows of each map that are compared with their target in a step
DEPTHS = (1.0, 0.7, 0.5, 0.3)  # weights of the attention loss, from the finest maps to the coarsest
JOINT = 0.35  # the VAE learns in this first share of the training, then stands still
WEIGHTS = {"attention": 1.0, "denoise": 0.5, "rebuild": 1.0, "prior": 0.1, "divergence": 0.0}
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


# ---- region hierarchies -------------------------------------------------------------------------


def hierarchies(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut uint8 (H, W, 3) into superpixels, uint16 (H, W), and merge them by each recipe.

    The regions of the superpixels are uint8 (hierarchy, FINEST - 1, n), with 2, 3, … regions.
    """
    pixels = slic(image, 360, compactness=15, max_num_iter=5, start_label=0)
    lab = rgb2lab(image).astype(np.float32)
    light, flat, n = lab[..., 0], pixels.ravel(), int(pixels.max()) + 1
    variance = gaussian_filter(light**2, 3) - gaussian_filter(light, 3) ** 2
    slopes = (np.abs(gaussian_filter(light, 1, order=order)) for order in ((0, 1), (1, 0)))
    texture = (np.sqrt(np.maximum(variance, 0)), *(2 * gaussian_filter(s, 3) for s in slopes))
    area = np.bincount(flat, minlength=n).astype(np.float64)
    maps = (*np.moveaxis(lab, -1, 0), *texture)
    feature = np.stack([np.bincount(flat, m.ravel(), n) / area for m in maps], 1)  # (n, 6)
    touch = np.zeros((n, n), bool)
    for a, b in ((pixels[:, 1:], pixels[:, :-1]), (pixels[1:], pixels[:-1])):
        touch[a, b] = touch[b, a] = True
    np.fill_diagonal(touch, val=False)
    regions = []
    for lightness, rough, exponent in HIERARCHIES:
        scale = np.array([lightness, 1.3, 1.3, rough, rough, rough])
        regions.append(ward(feature * scale, area / area.mean(), touch, exponent))
    return pixels.astype(np.uint16), np.stack(regions)


def ward(feature: np.ndarray, area: np.ndarray, touch: np.ndarray, exponent: float) -> np.ndarray:
    """Merge the cheapest neighbours until 2 regions are left → uint8 (FINEST - 1, n), 2 first."""
    area, touch, n = area.copy(), touch.copy(), len(area)

    def price(i: int) -> np.ndarray:
        size = area * area[i] / (area + area[i])
        return np.where(touch[i], size**exponent * ((feature - feature[i]) ** 2).sum(1), np.inf)

    cost = np.stack([price(i) for i in range(n)])
    region, levels = np.arange(n), np.zeros((FINEST - 1, n), np.uint8)
    for count in range(n, 1, -1):
        if count <= FINEST:
            levels[count - 2] = np.unique(region, return_inverse=True)[1]
        i, j = divmod(int(cost.argmin()), n)
        feature[i] = (feature[i] * area[i] + feature[j] * area[j]) / (area[i] + area[j])
        area[i] += area[j]
        touch[i] |= touch[j]
        touch[:, i] |= touch[:, j]
        touch[i, i] = touch[j] = touch[:, j] = False
        cost[j] = cost[:, j] = np.inf
        cost[i] = cost[:, i] = price(i)
        region[region == j] = i
    return levels


def cache_hierarchy(job: tuple[Path, Path]) -> None:
    """One photograph → one .npz."""
    source, target = job
    pixels, regions = hierarchies(np.asarray(Image.open(source).convert("RGB")))
    np.savez(target.with_suffix(".part.npz"), pixels=pixels, regions=regions)
    target.with_suffix(".part.npz").replace(target)


def training_files(data: Path) -> dict[str, list[Path]]:
    """The photographs of each pool, without those held out."""
    files = {pool: sorted((data / pool).glob("*.jpg")) for pool in POOLS}
    return {p: [f for f in fs if not f.name.startswith(HELD_OUT)] for p, fs in files.items()}


def cache_hierarchies(data: Path, cache: Path) -> None:
    """Hierarchies of all photographs that have none yet, on all cores: some minutes."""
    cache.mkdir(parents=True, exist_ok=True)
    files = [file for pool in training_files(data).values() for file in pool]
    jobs = [(file, cache / f"{file.stem}.npz") for file in files]
    jobs = [job for job in jobs if not job[1].exists()]
    with Pool() as workers:
        for done, _ in enumerate(workers.imap_unordered(cache_hierarchy, jobs, 8), 1):
            if done % 100 == 0:
                print(f"hierarchies {done}/{len(jobs)}", flush=True)


# ---- samples ------------------------------------------------------------------------------------


class Photographs:
    """All photographs, superpixels and regions in memory; random crops of them."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.pools: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for files in training_files(data).values():
            self.pools.append([])
            for file in files:
                image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
                arrays = np.load(cache / f"{file.stem}.npz")
                pixels = torch.from_numpy(arrays["pixels"].astype(np.int16))
                levels = torch.from_numpy(arrays["regions"][:, [count - 2 for count in LEVELS]])
                self.pools[-1].append((image, pixels, levels))

    def crop(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """→ image (3, size, size) in [-1, 1], superpixels (size/8, size/8), affinity (n, n)."""
        pool = self.pools[rng.choice(len(POOLS), p=list(POOLS.values()))]
        image, pixels, levels = pool[rng.integers(len(pool))]
        # The sides are drawn apart: the runtime squashes every photograph to a square, too.
        least = 0.5 if size < 384 else 0.75
        high, wide = (round(side * rng.uniform(least, 1)) for side in pixels.shape)
        top = rng.integers(pixels.shape[0] - high + 1)
        left = rng.integers(pixels.shape[1] - wide + 1)
        window = (slice(top, top + high), slice(left, left + wide))
        image = image[None, :, *window].float() / 127.5 - 1
        image = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)[0]
        pixels = shrink(pixels[window], size // 8)
        if rng.random() < 0.5:
            image, pixels = image.flip(-1), pixels.flip(-1)
        grey = image.mean(0, keepdim=True)
        image = grey + (image - grey) * (0 if rng.random() < 0.05 else rng.uniform(0.7, 1.3))
        tint = torch.tensor(rng.uniform(-0.08, 0.08, (3, 1, 1)) + rng.uniform(-0.12, 0.12))
        image = (image * rng.uniform(0.75, 1.2) + tint.float()).clamp(-1, 1)
        weights = torch.tensor(list(LEVELS.values())).repeat(len(HIERARCHIES))[:, None, None]
        levels = levels.flatten(0, 1)  # (hierarchy · level, n)
        same = levels[:, :, None] == levels[:, None, :]
        return image, pixels, (same * weights).sum(0) / weights.sum()


def shrink(labels: Tensor, side: int) -> Tensor:
    """Integer labels (h, w) → (side, side), the nearest."""
    grid = labels[None, None].float()
    return functional.interpolate(grid, (side, side), mode="nearest-exact")[0, 0].long()


# ---- the model ----------------------------------------------------------------------------------


class Probe:
    """A self-attention processor that keeps its queries and keys, (B, heads, n², channels)."""

    def __init__(self) -> None:
        self.query = self.key = torch.empty(0)

    def __call__(self, attn: nn.Module, hidden_states: Tensor, **_: object) -> Tensor:
        """Do what diffusers' own processor does."""
        layers = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
        self.query, self.key = query, key
        out = functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def maps(self, count: int, rows: Tensor | slice) -> Tensor:
        """Head-averaged attention (count, rows, n²) of the first images of the batch."""
        query = self.query[:count, :, rows] * self.query.shape[-1] ** -0.5
        return (query @ self.key[:count].transpose(-1, -2)).softmax(-1).mean(1)


def probe(unet: UNet2DConditionModel) -> list[list[Probe]]:
    """Put a probe into every self-attention; the probes of each resolution, finest first."""
    probes = {name: Probe() for name in unet.attn_processors if "attn1" in name}
    unet.set_attn_processor({**unet.attn_processors, **probes})
    depths = ("down_blocks.0 up_blocks.3", "down_blocks.1 up_blocks.2", "down_blocks.2 up_blocks.1")
    return [
        [p for name, p in probes.items() if name.startswith(tuple(depth.split()))] for depth in (*depths, "mid_block")
    ]


def build(folder: Path) -> StableDiffusionPipeline:
    """The untrained model. Its text encoder stays random: only the empty prompt is ever used."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=512,
    )
    with torch.no_grad():  # so that scaled latents have a deviation near 1
        vae.encoder.conv_out.weight[:4] *= 5
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(48, 80, 96, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(2, 4, 4, 4),  # the number of heads, in spite of its name
        cross_attention_dim=32,
        norm_num_groups=8,
        time_embedding_dim=64,
    )
    ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=514, num_attention_heads=2, **sizes, **ends))
    if not folder.exists():
        write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    schedule = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def empty_prompt(pipeline: StableDiffusionPipeline) -> Tensor:
    """Embedding (1, 77, channels) of the empty prompt."""
    settings = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return pipeline.text_encoder(pipeline.tokenizer("", **settings).input_ids).last_hidden_state


# ---- training -----------------------------------------------------------------------------------


def attention_losses(
    probes: list[list[Probe]], pixels: list[Tensor], affinities: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every layer's maps, and of each resolution's mean map, with their targets.

    The second value, for the log, is the KL divergence of the finest mean maps from their targets.
    """
    loss, distance = torch.zeros(()), torch.zeros(())
    for weight, layers in zip(DEPTHS, probes, strict=True):
        cells = layers[0].key.shape[2]
        rows = torch.randperm(cells)[:QUERIES]
        at = [shrink(p, math.isqrt(cells)).flatten() for p in pixels]  # superpixel of each cell
        near = [a[p[rows]][:, p] for a, p in zip(affinities, at, strict=True)]
        target = ((torch.stack(near) - 1) / TEMPERATURE).softmax(-1)  # (B, rows, n²)
        maps = torch.stack([p.maps(len(pixels), rows) for p in layers])  # (layer, B, rows, n²)
        each = -(target * (maps + 1e-8).log()).sum(-1).mean()
        mean = -(target * (maps.mean(0) + 1e-8).log()).sum(-1).mean()
        loss = loss + weight * (0.5 * each + 0.5 * mean)
        if layers is probes[0]:
            distance = mean.detach() + (target * (target + 1e-8).log()).sum(-1).mean()
    return loss / sum(DEPTHS), distance


def vae_losses(
    vae: AutoencoderKL, images: Tensor, posterior: DiagonalGaussianDistribution, latent: Tensor
) -> dict[str, Tensor]:
    """Reconstruction of a window of 16 by 16 latents in two images, and what tames the latents."""
    y, x = torch.randint(latent.shape[-1] - 15, (2,)).tolist()
    window = posterior.sample()[:2, :, y : y + 16, x : x + 16]
    wanted = images[:2, :, 8 * y : 8 * y + 128, 8 * x : 8 * x + 128]
    # The denoiser wants mean 0 and variance 1; the posterior stays a narrow one.
    moments = latent.mean((0, 2, 3)) ** 2 + latent.var((0, 2, 3)).log() ** 2
    prior = moments.mean() + 1e-6 * posterior.kl().mean() / latent[0].numel()
    return {"rebuild": functional.l1_loss(vae.decode(window).sample, wanted), "prior": prior}


def step_losses(
    pipeline: StableDiffusionPipeline,
    probes: list[list[Probe]],
    prompt: Tensor,
    samples: list[tuple[Tensor, Tensor, Tensor]],
    *,
    learn_vae: bool,
) -> dict[str, Tensor]:
    """All losses of one batch of crops of one size: one VAE encoding, one UNet pass."""
    crops, pixels, affinities = (list(part) for part in zip(*samples, strict=True))
    images = torch.stack(crops).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(learn_vae):
        posterior = pipeline.vae.encode(images).latent_dist
        latent = posterior.mean * pipeline.vae.config.scaling_factor  # (B, 4, size/8, size/8)
    losses = vae_losses(pipeline.vae, images, posterior, latent) if learn_vae else {}
    # One image is denoised, too, if it is small. Its latents are detached: else they would become
    # what is easy to denoise.
    clean = latent[: int(images.shape[-1] < 384)].detach()
    noise, at = torch.randn_like(clean), torch.randint(1000, (len(clean),))
    inputs = torch.cat([latent, pipeline.scheduler.add_noise(clean, noise, at)])
    times = torch.cat([torch.full((len(latent),), TIMESTEP), at])
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    velocity = pipeline.unet(inputs, times, prompt.expand(len(inputs), -1, -1)).sample
    if len(clean):
        wanted = pipeline.scheduler.get_velocity(clean, noise, at)
        losses["denoise"] = functional.mse_loss(velocity[len(latent) :], wanted)
    losses["attention"], losses["divergence"] = attention_losses(probes, pixels, affinities)
    return losses


def share(parameters: list[nn.Parameter], clock: float) -> float:
    """Average the gradients over the processes, and the clock, so that all stop together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([clock])])
    distributed.all_reduce(flat)
    *parts, last = (flat / distributed.get_world_size()).split([*(g.numel() for g in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    return last.item()


def draw_size(progress: float, rng: np.random.Generator) -> tuple[int, int]:
    """(crop, images): small crops first; full 64² maps, as at run time, in the second half."""
    chances = (0.4, 0.2, 0.4) if progress > 0.5 else (0.8, 0.15, 0.05)
    return ((256, 3), (384, 2), (512, 1))[rng.choice(3, p=chances)]


def ema(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average, a plain one at the start."""
    return average.lerp(value, 1 - min(0.997, (int(count) + 1) / (int(count) + 10)))


def train(rank: int, args: argparse.Namespace) -> None:
    """One process of several: one thread each is faster than all threads on one batch."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    meeting = f"file://{args.work}/group"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    pipeline = build(args.work / f"tokenizer{rank}")
    prompt, probes = empty_prompt(pipeline), probe(pipeline.unet)
    models = nn.ModuleDict({"vae": pipeline.vae, "unet": pipeline.unet})
    models.to(memory_format=torch.channels_last)
    parameters = list(models.parameters())
    averaged = AveragedModel(models, avg_fn=ema)
    optimizer = torch.optim.AdamW(parameters, args.rate, (0.9, 0.99), fused=True)
    parts = {"models": models, "averaged": averaged, "optimizer": optimizer}
    counts = resume(args.work / "state.pt", parts)
    torch.manual_seed(counts["step"] * args.processes + rank)
    own = np.random.default_rng((counts["step"], rank))
    common = np.random.default_rng(counts["step"])  # draws the same in all processes
    photographs = Photographs(args.data, args.work / "hierarchies")
    log: dict[str, float] = {}
    tick = saved_at = time.time()
    while (progress := counts["seconds"] / 60 / args.minutes) < 1:
        size, count = draw_size(progress, common)
        samples = [photographs.crop(size, own) for _ in range(count)]
        # A still latent space is easier to denoise, and frees time for the UNet. The encoder's
        # backward pass at full size would cost as much as the UNet's.
        learn_vae = progress < JOINT and size < 512
        losses = step_losses(pipeline, probes, prompt, samples, learn_vae=learn_vae)
        optimizer.zero_grad()
        sum(WEIGHTS[name] * value for name, value in losses.items()).backward()
        tick, before = time.time(), tick
        counts["seconds"] = share(parameters, counts["seconds"] + tick - before)
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        warm = min(1, (counts["step"] + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        optimizer.step()
        averaged.update_parameters(models)
        counts["step"] += 1
        counts["samples"] += count * args.processes
        losses[f"divergence{size}"] = losses.pop("divergence")
        for name, value in losses.items():
            log[name] = 0.95 * log.get(name, value.item()) + 0.05 * value.item()
        if rank == 0 and counts["step"] % 25 == 0:
            print(*(f"{k} {v:.4g}" for k, v in (counts | log).items()), flush=True)
        if rank == 0 and time.time() - saved_at > 180:
            save(args.work, pipeline, parts, counts)
            saved_at = time.time()
    if rank == 0:
        save(args.work, pipeline, parts, counts)


def resume(state: Path, parts: dict[str, nn.Module | torch.optim.Optimizer]) -> dict[str, float]:
    """Load what `save` wrote, if it did → steps, samples and seconds so far."""
    if not state.exists():
        return {"step": 0, "samples": 0, "seconds": 0.0}
    saved = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["counts"]


def save(
    work: Path,
    pipeline: StableDiffusionPipeline,
    parts: dict[str, nn.Module | torch.optim.Optimizer],
    counts: dict[str, float],
) -> None:
    """The state to go on from, and the averaged weights as a diffusers checkpoint."""
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "counts": counts}, work / "state.part")
    (work / "state.part").replace(work / "state.pt")
    new, old, final = (work / f"checkpoint{suffix}" for suffix in (".new", ".old", ""))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    write_tokenizer(new / "tokenizer")  # vocab.json and merges.txt, which transformers 5 leaves out
    best = parts["averaged"].module
    StableDiffusionPipeline(
        **{**pipeline.components, "vae": best["vae"], "unet": best["unet"]},
        requires_safety_checker=False,
    ).save_pretrained(new)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


# ---- measuring ----------------------------------------------------------------------------------


def covering(found: np.ndarray, truth: np.ndarray) -> float:
    """Arbeláez' segmentation covering of labels (H, W) by labels (H, W); 255 in truth is void."""
    found, truth = (np.unique(x[truth != 255], return_inverse=True)[1] for x in (found, truth))
    shared = np.zeros((truth.max() + 1, found.max() + 1))
    np.add.at(shared, (truth, found), 1)
    sizes = shared.sum(1, keepdims=True)
    overlap = shared / (sizes + shared.sum(0) - shared)
    return float((sizes[:, 0] * overlap.max(1)).sum() / sizes.sum())


@torch.no_grad()
def attention_of(
    image: Image.Image, pipeline: StableDiffusionPipeline, prompt: Tensor, probes: list[list[Probe]]
) -> np.ndarray:
    """Aggregated self-attention (64, 64, 64, 64) of an image squashed to 512 by 512."""
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
                scores.append((covering(labels, truth), len(np.unique(labels))))
                if threshold == shown:
                    panels.append(panel(np.asarray(image), labels))
        means = np.reshape(scores, (-1, len(THRESHOLDS), 2)).mean(0)
        print(f"{name:>19} " + " ".join(f"{s:.3f} ({c:4.1f})" for s, c in means), flush=True)
    rows = [np.concatenate(panels[i : i + 4], 1) for i in range(0, len(panels) // 4 * 4, 4)]
    Image.fromarray(np.concatenate(rows)).save(work / "overlays.png")


def panel(photo: np.ndarray, labels: np.ndarray, size: int = 240) -> np.ndarray:
    """The photograph beside its masks, (size, 2 size, 3)."""
    colours = np.random.default_rng(3).integers(0, 256, (int(labels.max()) + 1, 3))
    mixed = (0.35 * photo + 0.65 * colours[labels]).astype(np.uint8)
    pair = (Image.fromarray(x).resize((size, size)) for x in (photo, mixed))
    return np.concatenate([np.asarray(x) for x in pair], 1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the small embedded diffusion model.")
    parser.add_argument("--data", type=Path, help="folder with the pools of training photographs")
    parser.add_argument("--dev", type=Path, help="folder with the labelled sets to measure on")
    parser.add_argument("--work", type=Path, required=True, help="cache, state, checkpoint, sheets")
    parser.add_argument("--minutes", type=float, default=60, help="training time, over all runs")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="1 thread each")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="only measure this one")
    parser.add_argument("--images", type=int, default=12, help="pictures of each labelled set")
    parser.add_argument("--shown", type=float, default=0.3, help="threshold of overlays.png")
    args = parser.parse_args()
    args.work = work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not args.evaluate:
        if args.data is None:
            parser.error("training needs --data")
        cache_hierarchies(args.data, work / "hierarchies")
        (work / "group").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)
    if args.dev:
        evaluate(args.evaluate or work / "checkpoint", args.dev, work, args.images, args.shown)


if __name__ == "__main__":
    main()
