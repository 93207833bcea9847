"""Plugins `transformer_seq2seq`, `lstm_seq2seq` and `gru_seq2seq`."""

from __future__ import annotations

from pydantic import Field, model_validator

from statewise.model_spec import ModelSpec, StateSpec
from training.seq2seq.config import Seq2SeqConfig, Seq2SeqPlugin
from training.seq2seq.transformer import TransformerSeq2SeqModule
from training.transformer.plugin import TransformerConfig


class TransformerSeq2SeqConfig(Seq2SeqConfig, TransformerConfig):
    """Configuration of encoder and decoder, which differ in their depth at most."""

    num_encoder_layers: int | None = Field(default=None, ge=1, le=256)
    """Layers of the encoder; `num_layers`, those of the decoder, where absent."""
    shared_embeddings: bool = True
    """Sources and targets are embedded by one matrix, where both are tokens; needs one vocabulary."""

    @model_validator(mode="after")
    def _embeddings_fit(self) -> TransformerSeq2SeqConfig:
        if self.shares_embedding and self.source_vocabulary_size != self.vocabulary_size:
            raise ValueError(
                f"shared_embeddings needs one vocabulary, got {self.source_vocabulary_size} source tokens and "
                f"{self.vocabulary_size} target tokens; set it to false"
            )
        return self

    @property
    def shares_embedding(self) -> bool:
        """Whether encoder and decoder read through one matrix."""
        both_tokens = self.source_vocabulary_size is not None and self.vocabulary_size is not None
        return self.shared_embeddings and both_tokens

    @property
    def encoder(self) -> TransformerSeq2SeqConfig:
        """The same settings, for the encoder's items and layers."""
        return self.model_copy(
            update={
                "vocabulary_size": self.source_vocabulary_size,
                "features": self.source_features,
                "max_positions": self.max_source_positions,
                "num_layers": self.num_encoder_layers or self.num_layers,
            }
        )


class TransformerSeq2SeqPlugin(Seq2SeqPlugin[TransformerSeq2SeqConfig]):
    """Encoder-decoder Transformers (Vaswani et al. 2017), from that paper's shape to BART's."""

    name = "transformer_seq2seq"
    config_class = TransformerSeq2SeqConfig

    def spec(self, config: TransformerSeq2SeqConfig) -> ModelSpec:
        """The number of items so far, each layer's caches, and its keys and values of the source."""
        heads, size = config.key_value_heads, config.head_width
        parts = [(layer, part) for layer in range(config.num_layers) for part in ("key", "value")]
        caches = [
            StateSpec(name=f"{part}.{layer}", kind="cache", shape=("row", heads, "position", size))
            for layer, part in parts
        ]
        memory = [
            StateSpec(name=f"source_{part}.{layer}", kind="memory", shape=("row", heads, "source", size))
            for layer, part in parts
        ]
        position = StateSpec(name="position", dtype="int64", shape=("row",))
        length = StateSpec(name="source_length", kind="memory", dtype="int64", shape=("row",))
        return config.model_spec((position, *caches, *memory, length), config.max_positions)

    def build(self, config: TransformerSeq2SeqConfig) -> TransformerSeq2SeqModule:
        """The step function, freshly initialised."""
        return TransformerSeq2SeqModule(config)
