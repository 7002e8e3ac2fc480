"""The config of our models as transformers sees it: `model` holds the typed config, the rest follows from it."""

import json
from dataclasses import fields, replace
from typing import Any

from memseq.configs import from_dict, to_dict
from memseq.errors import ConfigError, MissingExtraError
from memseq.systems import stem_of

try:
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["MemseqConfig", "with_vocab_size"]


class MemseqConfig(PreTrainedConfig):
    """`MemseqConfig.of(config)` wraps a config of ours; `config.json` of a saved model is one of these.

    Raises `ConfigError` where `model` holds an unknown type or key.
    """

    model_type = "memseq"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **settings: Any,
    ) -> None:
        self.model = model  # as `memseq.configs.to_dict` writes it
        self.extra = extra  # what was saved beside the model, such as how it was trained
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        if model is not None:  # transformers makes an empty config too, to see what differs from it
            ours = from_dict(model)
            if getattr(ours, "vocab_size", None) is None:
                raise ConfigError(
                    f"{model['type']!r} is a memory, not a language model; wrap it in a StackConfig(vocab_size=..., layers=...)"
                )
            settings |= {"vocab_size": ours.vocab_size, "hidden_size": ours.d_model}
            # the model's class enters its own table when its module is loaded: before anyone can look it up with this config
            import memseq.retrofit.huggingface  # noqa: F401
        super().__init__(**settings)

    @classmethod
    def of(cls, config: Any, **settings: Any) -> "MemseqConfig":
        """Wrap a config of ours, such as a `MemformerLMConfig`; `settings` are those of transformers, such as `pad_token_id`."""
        return cls(model=to_dict(config), **settings)

    def build(self) -> Any:
        """The language model, newly initialised."""
        if self.model is None:
            raise ConfigError("this MemseqConfig is empty; make one with MemseqConfig.of(config)")
        return from_dict(self.model).build()


def with_vocab_size(config: Any, size: int) -> Any:
    """`config` with another vocabulary: its own, or that of the backbone it is built around."""
    names = {f.name for f in fields(config)}
    if "vocab_size" in names:
        return replace(config, vocab_size=size)
    if "backbone" in names:
        return replace(config, backbone=with_vocab_size(config.backbone, size))
    if stem_of(type(config)) == "huggingface":
        return replace(config, json=json.dumps(json.loads(config.json) | {"vocab_size": size}, sort_keys=True))
    raise ConfigError(f"the vocabulary of a {type(config).__name__} cannot be resized")


CONFIG_MAPPING.register(MemseqConfig.model_type, MemseqConfig, exist_ok=True)
