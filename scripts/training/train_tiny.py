"""Train the embedded model: a Stable-Diffusion-shaped VAE and UNet small enough for a 2-core CPU.

    python scripts/training/train_tiny.py --data PHOTOGRAPHS --dev LABELLED \
        --work DIR --minutes 60 [--from CHECKPOINT]
    python scripts/training/train_tiny.py --dev LABELLED --work DIR --evaluate DIR/checkpoint

The first command builds region hierarchies, trains, writes the diffusers checkpoint DIR/checkpoint
and scores it; run again after an interruption, it resumes. With a CUDA device it trains
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
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for make_checkpoint
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads slow each other down on a shared CPU

import torch
from diffusers import StableDiffusionPipeline
from losses import WEIGHTS, step_losses
from make_checkpoint import write_tokenizer
from network import build, empty_prompt, probe
from photographs import Batch, Photographs, cache_hierarchies
from scores import evaluate
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

JOINT = 0.35  # the VAE is trained during this first share of the training, then frozen
AVERAGE = 0.998  # decay of the weights' moving average


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
    """Update the exponential moving average, which begins as a plain average."""
    return average.lerp(value, 1 - min(AVERAGE, (int(count) + 1) / (int(count) + 10)))


def train(rank: int, args: argparse.Namespace) -> None:
    """Train in one of several processes. On a CPU, one thread per process is faster than all threads on one batch."""
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
    # On a shared CPU this process may get little time, which must not shorten its schedule.
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
    """Join the other processes, and set PyTorch's global options."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    meeting = f"file://{args.work}/group"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    return torch.device(args.device)


def load(args: argparse.Namespace, rank: int, step: int) -> tuple[Photographs, Iterator[Batch]]:
    """Return the images and endless batches of them. Each process and each new start draws other batches."""
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
    """Save the state to resume from, and the averaged weights as a diffusers checkpoint."""
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


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the small embedded diffusion model.")
    parser.add_argument("--data", type=Path, help="folder with the pools of training photographs")
    parser.add_argument("--dev", type=Path, help="folder with the labelled sets to measure on")
    parser.add_argument("--work", type=Path, required=True, help="cache, state, checkpoint, sheets")
    parser.add_argument("--minutes", type=float, default=60, help="training time per process, over all runs")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="start from its weights")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--processes", type=int, help="processes with one thread each; default: one per core, or 1 with CUDA"
    )
    parser.add_argument("--batch", type=int, help="factor on the batch sizes; default: 1, or 16 with CUDA")
    parser.add_argument("--denoise", type=int, default=4, help="every Nth batch is also denoised")
    parser.add_argument("--score", type=float, default=30, help="minutes between scores on 4 images of each set")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="only measure this checkpoint")
    parser.add_argument("--images", type=int, default=12, help="images of each labelled set")
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
