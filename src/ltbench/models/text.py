"""DistilBERT (arXiv 1910.01108) as a backbone: token ids in, logits out."""

import inspect
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from ltbench.errors import UserError


class TextClassifier(nn.Module):
    """A Hugging Face model for sequence classification, called with token ids alone.

    Args:
        model: Takes ``input_ids`` and ``attention_mask``, and gives ``logits``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.model.get_submodule("classifier")

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) int64, 0 being padding, to the state (B, d) of the first token."""
        states: Tensor = self.model.get_submodule("distilbert")(tokens, tokens != 0)[0]
        return states[:, 0]

    def forward_head(self, states: Tensor, pre_logits: bool = False) -> Tensor:
        """Map states (B, d) to what the classifier sees, (B, d), or to logits (B, C)."""
        seen = self.model.get_submodule("pre_classifier")(states).relu()
        seen = self.model.get_submodule("dropout")(seen)
        return seen if pre_logits else self.get_classifier()(seen)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) int64, 0 being padding, to logits (B, C)."""
        logits: Tensor = self.model(input_ids=tokens, attention_mask=tokens != 0).logits
        return logits


@register_model
def distilbert(
    pretrained: bool = False,
    num_classes: int = 2,
    in_chans: int = 1,
    weights: str | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> TextClassifier:
    """DistilBERT: 66 million parameters, or what ``kwargs`` say (``dim``, ``n_layers``, ...).

    Args:
        pretrained: Not used; ``weights`` says what to start from.
        num_classes: Outputs of the classifier.
        in_chans: Not used.
        weights: Name on the Hugging Face hub or folder of pretrained weights; default: random ones.
        **kwargs: Entries of ``transformers.DistilBertConfig``.
    """
    try:
        from transformers import (  # type: ignore[import-not-found,unused-ignore]
            DistilBertConfig,
            DistilBertForSequenceClassification,
        )
    except ImportError as error:
        raise UserError("backbone 'distilbert' needs: pip install ltbench[text].") from error
    options = {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "cache_dir")}
    options.pop("pretrained_cfg_overlay", None)
    # from_pretrained takes others, too, which unpickle a file or fetch code.
    if others := options.keys() - inspect.signature(DistilBertConfig).parameters.keys():
        raise UserError(f"backbone_args: distilbert has no '{min(others)}'.")
    if weights is None:
        settings: dict[str, Any] = {**options, "num_labels": num_classes}
        config = DistilBertConfig(**settings)
        return TextClassifier(DistilBertForSequenceClassification(config))
    try:
        model = DistilBertForSequenceClassification.from_pretrained(
            weights, num_labels=num_classes, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the weights '{weights}' of distilbert: {error}") from error
    return TextClassifier(model)
