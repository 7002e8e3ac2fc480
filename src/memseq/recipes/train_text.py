"""Train a language model on text: the recipe behind `memseq train`.

What is read is any text that `tasks.text.open_text` names; a twentieth is held out and scored at the end. What is left in
`out` is a model directory that `load_pretrained`, `memseq eval` and `memseq generate` open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memseq.errors import ConfigError
from memseq.tasks.text import Text, open_text
from memseq.tasks.tokenizers import BPE, Bytes, Tokenizer, load_tokenizer
from memseq.training.checkpoint import Checkpoints, read_json, write_json
from memseq.training.distributed import FullyShard, OneProcess, ReplicateData, process_group, rank, world
from memseq.training.lanes import EachOnce, StreamLanes
from memseq.training.loop import Run, TrainingConfig, train

__all__ = ["TextRecipe", "held_out", "tokenizer_for", "train_text"]


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """What is trained, on what, and how.

    model       the model's config for a vocabulary of a given size
    places      text, as `open_text` names it
    tokenizer   "bytes", "train" (byte-pair encoding, learned on this text) or the path of a tokenizer.json
    """

    model: Callable[[int], Any]
    training: TrainingConfig
    places: tuple[str, ...] = ("stdlib",)
    tokenizer: str = "bytes"
    vocab_size: int = 4096  # of a tokenizer that is trained
    scored: int = 1 << 17  # tokens of the held-out text that are scored, at the end and at each evaluation
    shard: bool = False  # split weights over processes (FSDP2) where each otherwise holds them all


def train_text(recipe: TextRecipe, out: str | Path, *, resume: bool = False, quiet: bool = False, command: Any = None) -> Run:
    """Run `recipe` and leave log, checkpoints, model and tokenizer in `out`.

    `command` is any JSON value that says how the run was started; it is kept in `out/command.json`.
    Raises what opening the text, building the model and training raise; nothing is written before all three are ready.
    """
    out = Path(out)
    with process_group() as device:
        text = open_text(recipe.places)
        streamed = not isinstance(text, Text)
        learning, aside = (text, None) if streamed else text.split()
        tokenizer = load_tokenizer(out) if resume and (out / "tokenizer.json").is_file() else tokenizer_for(recipe, learning)
        config = recipe.model(tokenizer.vocab_size)
        training = recipe.training
        if streamed:
            stream = open_text(recipe.places, tokenizer).shard(rank(), world())
            data = StreamLanes(stream, batch_size=training.batch_size, segment_length=training.segment_length, rank=rank(), world=world())
        else:
            data = training.lanes(learning.with_tokenizer(tokenizer))
        valid = None if aside is None else _scored(aside.with_tokenizer(tokenizer), recipe)
        with torch.random.fork_rng(devices=[]):  # the same weights for the same seed, whatever was drawn before
            torch.manual_seed(training.seed)
            model = config.build().to(device)
        if rank() == 0 and command is not None and (resume or Checkpoints(folder=out / "checkpoints").latest() is None):
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "command.json", command)
        return train(
            model,
            data,
            training,
            out,
            valid=valid,
            strategy=FullyShard() if recipe.shard else ReplicateData() if world() > 1 else OneProcess(),
            resume=resume,
            tokenizer=tokenizer,
            quiet=quiet,
        )


def tokenizer_for(recipe: TextRecipe, text: Any) -> Tokenizer:
    """The tokenizer that `recipe` names; one that is trained reads all of `text`."""
    if recipe.tokenizer == "bytes":
        return Bytes()
    if recipe.tokenizer != "train":
        return load_tokenizer(recipe.tokenizer)
    if not isinstance(text, Text):
        raise ConfigError("a tokenizer cannot be trained on a data set that is streamed; train one on a file, then give its tokenizer.json")
    return BPE.train(text.all_bytes(), recipe.vocab_size)


def held_out(checkpoint: str | Path) -> tuple[Text, tuple[str, ...]]:
    """The text that was kept aside when `checkpoint` was trained, and the places it came from."""
    command = Path(checkpoint) / "command.json"
    places: Sequence[str] = (read_json(command).get("files") if command.is_file() else None) or ("stdlib",)
    if any(place.startswith("hf:") or place == "-" for place in places):
        raise ConfigError(f"{checkpoint} was trained on {', '.join(places)}, of which nothing was kept aside; name a text to evaluate on")
    return open_text(places).split()[1], tuple(places)


def _scored(aside: Text, recipe: TextRecipe) -> EachOnce:
    training = recipe.training
    per_segment = training.batch_size * training.segment_length * world()
    lanes = {"batch_size": training.batch_size, "segment_length": training.segment_length, "rank": rank(), "world": world()}
    return EachOnce(aside, **lanes, segments=max(1, recipe.scored // per_segment))
