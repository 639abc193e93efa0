"""The embeddings of the empty prompt, from a checkpoint's text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffseg.engines.errors import CheckpointError
from diffseg.export.weights import load_model
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

if TYPE_CHECKING:
    from diffseg.export.locate import CheckpointFiles


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """The embeddings of the empty prompt that the UNet takes.

    Attributes:
        tokens: (1, tokens, width), for the cross-attention.
        pooled: (1, width), which SDXL adds to the time embedding; None for Stable Diffusion.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None


@torch.no_grad()
def embed_empty_prompt(files: CheckpointFiles) -> PromptEmbedding:
    """Encode the empty prompt as diffusers' pipelines encode a prompt.

    Stable Diffusion uses the last hidden state of its text encoder. SDXL joins the second-last hidden states of
    two, and adds the projection of the second to the time embedding.

    Raises:
        CheckpointError: a text encoder or tokenizer cannot be read.
    """
    folder = files.folder
    encoder = load_model(CLIPTextModel, folder / "text_encoder")
    ids = _tokenise(folder / "tokenizer")
    if not files.sdxl:
        return PromptEmbedding(encoder(ids).last_hidden_state, None)
    first = encoder(ids, output_hidden_states=True).hidden_states[-2]
    encoder = load_model(CLIPTextModelWithProjection, folder / "text_encoder_2")
    second = encoder(_tokenise(folder / "tokenizer_2"), output_hidden_states=True)
    return PromptEmbedding(torch.cat([first, second.hidden_states[-2]], dim=-1), second.text_embeds)


def _tokenise(folder: Path) -> torch.Tensor:
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokens = tokenizer(
            "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
    except Exception as error:  # each library raises its own exceptions  # noqa: BLE001
        raise CheckpointError(f"cannot load {folder}: {error}; download the checkpoint again") from None
    ids: torch.Tensor = tokens.input_ids
    return ids
