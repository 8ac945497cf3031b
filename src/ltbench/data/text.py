"""Semi-supervised texts: what differs from images between the source and the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.data.sources.text import LENGTH, Encoder, Text, Tokens
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError
from ltbench.naming import Name


class TextDataModule(SemiSupervisedDataModule):
    """Labelled and unlabelled texts as token ids (B, L); the strong view is another wording.

    Args:
        source: ``text`` (your own tables), ``imdb``, ``dbpedia14``, or ``phrases``.
        root: Folder of the tables.
        tokenizer: Name or folder of a Hugging Face tokenizer; default: the training words.
        max_length: Tokens per text, truncated or padded.
        **kwargs: Further arguments of :class:`~ltbench.data.semi.SemiSupervisedDataModule`.

    Raises:
        UserError: The source has images, or there is no such tokenizer.
    """

    texts = True

    def __init__(
        self,
        source: Name = "phrases",
        root: str | None = None,
        tokenizer: str | None = None,
        max_length: int = LENGTH,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if max_length < 1:
            raise UserError(f"data.max_length is {max_length}; it must be at least 1.")
        super().__init__(
            source, root, image_size=max_length, decoding=None, predict_folder=None, **kwargs
        )
        if tokenizer is not None:
            assert isinstance(self.source, Text)
            self.source.encoder = pretrained_encoder(tokenizer)
        self.strong_augment.insert(0, OtherWording())

    @override
    def normalise(self, images: Tensor) -> Tensor:
        return images[:, 0].long()  # (B, n, L), the first wording


class OtherWording(BatchTransform):
    """The second wording (B, 1, L) of texts (B, 2, L)."""

    @override
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images[:, 1:]


def pretrained_encoder(name: str) -> Encoder:
    """Return an encoder that uses a Hugging Face tokenizer.

    Args:
        name: Name on the hub, or a folder; its padding must be token 0, as in the BERT family.

    Raises:
        UserError: transformers is not installed, or there is no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError("a Hugging Face tokenizer needs: pip install ltbench[text].") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer '{name}': {error}") from error
    if tokenizer.pad_token_id != 0:
        raise UserError(
            f"tokenizer '{name}' pads with token {tokenizer.pad_token_id}; choose one of the BERT "
            "family, which pads with token 0."
        )

    def encode(texts: Sequence[str], length: int) -> Tokens:
        coded = tokenizer(list(texts), truncation=True, padding="max_length", max_length=length)
        return np.array(coded["input_ids"], dtype=np.int32)

    return encode
