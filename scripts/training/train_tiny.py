"""Train the embedded model: a Stable-Diffusion-shaped VAE and UNet small enough for a 2-core CPU.

    python scripts/training/train_tiny.py --data PHOTOGRAPHS --dev LABELLED \
        --work DIR --minutes 60 [--from CHECKPOINT]
    python scripts/training/train_tiny.py --dev LABELLED --work DIR --evaluate DIR/checkpoint

The first command builds region hierarchies, trains, writes the diffusers checkpoint DIR/checkpoint
and scores it; started again after a kill, it goes on where it stopped. With a CUDA device it trains
there, in bfloat16 and with larger batches. Training sees no labels:

1. Superpixels of each photograph are merged into three hierarchies of regions (hierarchy.py). The
   share of their cuts that leave two places in one region is the affinity of the two.
2. The UNet sees clean latents at the segmentation timestep, where the rows of every self-attention
   should be softmax((affinity - 1) / TEMPERATURE), and noised latents, for the v-prediction loss.
   At first the VAE learns too, from its reconstruction loss and from the attention's gradient; the
   one of a checkpoint given with --from stands still.

Needs the export extra (torch, diffusers, transformers), scikit-image, scipy and pillow.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # for make_checkpoint
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin starve each other on a shared CPU

import numpy as np
import torch
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hierarchy import RECIPES, affinity, distances, learn_textons, superpixels
from make_checkpoint import write_tokenizer
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
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
TEMPERATURE = 0.12
TIMESTEP = 300
QUERIES = 192  # random rows of each map that are compared with their target in a step
DEPTHS = (1.0, 0.7, 0.5, 0.3)  # weights of the attention loss, from the finest maps to the coarsest
JOINT = 0.35  # the VAE learns in this first share of the training, then stands still
LATE = 0.6  # from this share of the training on, full-size pictures are frequent
AVERAGE = 0.998  # decay of the weights' moving average
WEIGHTS = {"attention": 1.0, "denoise": 0.5, "rebuild": 1.0, "prior": 0.1, "divergence": 0.0}
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


# ---- region hierarchies -------------------------------------------------------------------------


def training_files(data: Path) -> dict[str, list[Path]]:
    """The photographs of each pool, without those held out."""
    files = {pool: sorted((data / pool).glob("*.jpg")) for pool in POOLS}
    return {p: [f for f in fs if not f.name.startswith(HELD_OUT)] for p, fs in files.items()}


def cache_hierarchy(job: tuple[Path, Path, np.ndarray]) -> None:
    """One photograph → one .npz."""
    source, target, textons = job
    found = superpixels(np.asarray(Image.open(source).convert("RGB")), textons)
    far = np.stack([distances(found, recipe) for recipe in RECIPES]).astype(np.float16)
    np.savez(target.with_suffix(".part.npz"), pixels=found.labels.astype(np.uint16), far=far)
    target.with_suffix(".part.npz").replace(target)


def cache_hierarchies(data: Path, cache: Path) -> None:
    """Hierarchies of all photographs that have none yet, on all cores: some 15 minutes on two."""
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


# ---- samples ------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Crops of one size, and which of their places belong together."""

    images: Tensor  # (B, 3, size, size) in [-1, 1]
    pixels: Tensor  # (B, size/8, size/8) int64: superpixel of each latent cell
    affinity: Tensor  # (B, n, n) uint8, of 255: share of the levels at which two superpixels are one region

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


class Photographs(IterableDataset[Batch]):
    """All photographs, superpixels and affinities in memory; endless batches of random crops of them."""

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
        """→ image (3, size, size), superpixels (size/8, size/8), affinity (n, n)."""
        pool = self.pools[rng.choice(len(POOLS), p=list(POOLS.values()))]
        image, pixels, affinity = pool[rng.integers(len(pool))]
        # The sides are drawn apart: the runtime squashes every photograph to a square, too.
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
    """Other light, contrast and colours: what belongs together stays so. (3, H, W) in [-1, 1]."""
    if rng.random() < 0.5:
        image = (image / 2 + 0.5).clamp(0, 1) ** math.exp(rng.uniform(-0.35, 0.35)) * 2 - 1
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * (0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4))
    tint = torch.tensor(rng.uniform(-0.08, 0.08, (3, 1, 1)) + rng.uniform(-0.12, 0.12))
    return (image * rng.uniform(0.75, 1.2) + tint.float()).clamp(-1, 1)


def shrink(labels: Tensor, side: int) -> Tensor:
    """Integer labels (B, h, w) → (B, side, side), the nearest."""
    grid = labels[:, None].float()
    return functional.interpolate(grid, (side, side), mode="nearest-exact")[:, 0].long()


def draw_size(progress: float, rng: np.random.Generator) -> tuple[int, int]:
    """(crop, images): small crops first; more of the full 64² maps, as at run time, later."""
    chances = (0.5, 0.2, 0.3) if progress > LATE else (0.85, 0.1, 0.05)
    return ((256, 3), (384, 2), (512, 1))[rng.choice(3, p=chances)]


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


def build(folder: Path, start: Path | None = None) -> StableDiffusionPipeline:
    """The model, untrained or of a checkpoint. Its text encoder stays random: only the empty prompt is ever used."""
    if start:
        return StableDiffusionPipeline.from_pretrained(start)
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


def attention_losses(probes: list[list[Probe]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every layer's maps, and of each resolution's mean map, with their targets.

    The second value, for the log, is the KL divergence of the finest mean maps from their targets.
    """
    device, count = batch.images.device, len(batch.images)
    loss, distance = torch.zeros((), device=device), torch.zeros((), device=device)
    image = torch.arange(count, device=device)[:, None, None]
    for weight, layers in zip(DEPTHS, probes, strict=True):
        cells = layers[0].key.shape[2]
        rows = torch.randperm(cells, device=device)[:QUERIES]
        at = shrink(batch.pixels, math.isqrt(cells)).flatten(1)  # (B, n²): superpixel of each cell
        near = batch.affinity[image, at[:, rows, None], at[:, None, :]].float() / 255  # (B, rows, n²)
        target = ((near - 1) / TEMPERATURE).softmax(-1)
        maps = torch.stack([layer.maps(count, rows) for layer in layers])  # (layer, B, rows, n²)
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
    batch: Batch,
    *,
    learn_vae: bool,
    noised: int,
) -> dict[str, Tensor]:
    """All losses of one batch: one VAE encoding, one UNet pass. The first `noised` images are denoised, too."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(learn_vae):
        posterior = pipeline.vae.encode(images).latent_dist
        latent = posterior.mean * pipeline.vae.config.scaling_factor  # (B, 4, size/8, size/8)
    losses = vae_losses(pipeline.vae, images, posterior, latent) if learn_vae else {}
    # Detached: else the latents would become what is easy to denoise.
    clean = latent[:noised].detach()
    noise, at = torch.randn_like(clean), torch.randint(1000, (noised,), device=clean.device)
    inputs = torch.cat([latent, pipeline.scheduler.add_noise(clean, noise, at)])
    times = torch.cat([torch.full((len(latent),), TIMESTEP, device=at.device), at])
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    velocity = pipeline.unet(inputs, times, prompt.expand(len(inputs), -1, -1)).sample
    if noised:
        wanted = pipeline.scheduler.get_velocity(clean, noise, at)
        losses["denoise"] = functional.mse_loss(velocity[len(latent) :], wanted)
    losses["attention"], losses["divergence"] = attention_losses(probes, batch)
    return losses


def share(parameters: list[nn.Parameter], clock: float) -> float:
    """Average the gradients over the processes, and the clock, so that all stop together."""
    if distributed.get_world_size() == 1:
        return clock
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([clock])])
    distributed.all_reduce(flat)
    *parts, last = (flat / distributed.get_world_size()).split([*(g.numel() for g in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    return last.item()


def ema(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average, a plain one at the start."""
    return average.lerp(value, 1 - min(AVERAGE, (int(count) + 1) / (int(count) + 10)))


def train(rank: int, args: argparse.Namespace) -> None:
    """One process of several. On a CPU, one thread each is faster than all threads on one batch."""
    device = join(rank, args)
    pipeline = build(args.work / f"tokenizer{rank}", args.start)
    prompt, probes = empty_prompt(pipeline).to(device), probe(pipeline.unet)
    models = nn.ModuleDict({"vae": pipeline.vae, "unet": pipeline.unet})
    models.to(device, memory_format=torch.channels_last).train()
    parameters = list(models.parameters())
    averaged = AveragedModel(models, avg_fn=ema)
    optimizer = torch.optim.AdamW(parameters, args.rate, (0.9, 0.99), fused=True)
    parts = {"models": models, "averaged": averaged, "optimizer": optimizer}
    counts = resume(args.work / "state.pt", parts, device)
    photographs, batches = load(args, rank, int(counts["step"]))
    log: dict[str, Tensor] = {}
    # A shared CPU may give this little of its time, which must not let the schedule run away.
    clock = time.time if device.type == "cuda" else time.process_time
    tick, saved_at, scored_at = clock(), time.time(), time.time()
    while (progress := counts["seconds"] / 60 / args.minutes) < 1:
        photographs.progress.fill_(progress)
        batch = next(batches).to(device)
        size = batch.images.shape[-1]
        # A still latent space is easier to denoise, and frees time for the UNet. The encoder's
        # backward pass at full size would cost as much as the UNet's.
        learn_vae = args.start is None and progress < JOINT and size < 512
        noised = len(batch.images) // 3 if size < 384 and counts["step"] % args.denoise == 0 else 0
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = step_losses(pipeline, probes, prompt, batch, learn_vae=learn_vae, noised=noised)
        optimizer.zero_grad()
        sum(WEIGHTS[name] * value for name, value in losses.items()).backward()
        tick, before = clock(), tick
        counts["seconds"] = share(parameters, counts["seconds"] + tick - before)
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        for group in optimizer.param_groups:
            warm = min(1, (counts["step"] + 1) / 100)
            group["lr"] = args.rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        optimizer.step()
        averaged.update_parameters(models)
        counts["step"] += 1
        counts["samples"] += len(batch.images) * args.processes
        losses[f"divergence{size}"] = losses.pop("divergence")
        for name, value in losses.items():  # not read from a GPU before they are printed
            log[name] = log.get(name, value.detach()).lerp(value.detach(), 0.05)
        if rank == 0 and counts["step"] % 25 == 0:
            print(*(f"{k} {float(v):.4g}" for k, v in (counts | log).items()), flush=True)
        if rank == 0 and time.time() - saved_at > 180:
            save(args.work, pipeline, parts, counts)
            saved_at = time.time()
            if args.dev and saved_at - scored_at > 60 * args.score:
                evaluate(args.work / "checkpoint", args.dev, args.work, 4, args.shown)
                tick, scored_at = clock(), time.time()
    if rank == 0:
        save(args.work, pipeline, parts, counts)
    distributed.destroy_process_group()


def join(rank: int, args: argparse.Namespace) -> torch.device:
    """Meet the other processes, and set what is global in torch."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    meeting = f"file://{args.work}/group"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    return torch.device(args.device)


def load(args: argparse.Namespace, rank: int, step: int) -> tuple[Photographs, Iterator[Batch]]:
    """The photographs, and endless batches of them; every process and every new start draws others."""
    torch.manual_seed(step * args.processes + rank)
    photographs = Photographs(args.data, args.work / "hierarchies", (step, rank), args.batch)
    workers = {"num_workers": os.cpu_count(), "pin_memory": True} if args.device == "cuda" else {}
    return photographs, iter(DataLoader(photographs, batch_size=None, **workers))


def resume(state: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], device: torch.device) -> dict[str, float]:
    """Load what `save` wrote, if it did → steps, samples and seconds so far."""
    if not state.exists():
        return {"step": 0, "samples": 0, "seconds": 0.0}
    saved = torch.load(state, map_location=device, weights_only=True)
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
    parser.add_argument("--minutes", type=float, default=60, help="training time of a process, over all runs")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="start from its weights")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--processes", type=int, help="1 thread each; default: the cores, 1 with CUDA")
    parser.add_argument("--batch", type=int, help="factor on the batches; default: 1, 16 with CUDA")
    parser.add_argument("--denoise", type=int, default=4, help="batches for each that is denoised, too")
    parser.add_argument("--score", type=float, default=30, help="minutes between scores on 4 pictures of each set")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="only measure this one")
    parser.add_argument("--images", type=int, default=12, help="pictures of each labelled set")
    parser.add_argument("--shown", type=float, default=0.3, help="threshold of overlays.png")
    args = parser.parse_args()
    args.work = work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.processes = args.processes or (1 if args.device == "cuda" else os.cpu_count())
    args.batch = args.batch or (16 if args.device == "cuda" else 1)
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
