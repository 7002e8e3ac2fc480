"""Digits pixel by pixel: a 28 x 28 image as a stream of 784 tokens, read a row at a time.

Source: Memformer (Wu et al., arXiv:2010.06891), its image experiment: 256 grey values a pixel, width 128, feedforward 256.

    python -m memseq.recipes.memformer_mnist path/to/mnist --minutes 5 --digits digits.png --json results.json

The folder holds the four IDX files, gzipped or not. Memformer and Transformer-XL of equal weights are trained on the same
number of floating-point operations, counted by torch on one window: the cheaper a token, the more tokens a model sees.
Memformer trains for `--minutes`; Transformer-XL gets the operations that this took. Scored in nats a pixel on test images,
of which the first pixel is given. `--digits` draws what Memformer generates from an empty memory.
"""

import argparse
import gzip
import json
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from memseq.errors import DataError, MissingExtraError
from memseq.models.presets import preset
from memseq.probes import bits_per_byte
from memseq.recipes.machine import describe
from memseq.recipes.memformer_text import as_large_as
from memseq.streams import generate
from memseq.training.backends import Backpropagation
from memseq.training.lanes import Chunk
from memseq.training.loop import TrainingConfig, train
from memseq.training.optim import AdamWConfig, WarmupCosine

__all__ = ["Images", "contenders", "draw", "main", "read_idx", "step_flops"]

SIDE = 28
ROWS_A_WINDOW = 7  # segments that the gradient flows back through: a quarter of an image


def read_idx(folder: str | Path, name: str) -> NDArray[np.uint8]:
    """The images [n, 784] of one IDX file of `folder`: `train-images-idx3-ubyte`, with `.gz` or without."""
    for path in (Path(folder) / f"{name}.gz", Path(folder) / name):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            magic, count, height, width = struct.unpack(">iiii", data[:16]) if len(data) >= 16 else (0, 0, 0, 0)
            if magic != 2051 or len(data) != 16 + count * height * width:
                raise DataError(f"{path} is not an IDX file of images, or is cut short; fetch it again")
            return np.frombuffer(data, dtype=np.uint8, offset=16).reshape(count, height * width)
    raise DataError(f"{folder} holds no {name} or {name}.gz; give the folder of the four MNIST files")


@dataclass(frozen=True)
class Images:
    """Images as documents of one token a pixel."""

    pixels: NDArray[np.uint8]  # [n, 784]

    def __len__(self) -> int:
        return len(self.pixels)

    def chunks(self, document: int, start: int = 0) -> Iterator[Chunk]:
        yield start, self.pixels[document, start:].astype(np.int64)

    def at_least(self, count: int) -> "Images":
        if count > len(self):
            raise DataError(f"{len(self)} images are too few for {count} lanes; use a smaller batch")
        return self


def contenders() -> dict[str, Any]:
    """Memformer, and Transformer-XL with as many weights; both see one row of pixels near them."""
    shape = {"d_model": 128, "n_layers": 4, "n_heads": 4, "segment_length": SIDE, "window": SIDE, "n_slots": 64}
    memformer = replace(preset("memformer", "tiny", **shape), ff_mult=2.0)
    return {"memformer": memformer, "transformer_xl": as_large_as(memformer, preset("transformer_xl", "tiny", **shape))}


def step_flops(config: Any, batch_size: int) -> int:
    """Floating-point operations of one training step: forward and backward through one window."""
    model = config.build()
    tokens, state, total = torch.zeros(batch_size, SIDE, dtype=torch.int64), model.init_state(batch_size), 0.0
    with FlopCounterMode(display=False) as counter:
        for _ in range(ROWS_A_WINDOW):
            loss, _, state = model.loss(tokens, tokens, state)
            total = total + loss
        total.backward()
    return counter.get_total_flops()


def score(model: Any, images: NDArray[np.uint8]) -> float:
    """Nats a pixel, of all pixels but each image's first."""
    documents = ([row.astype(np.int64)] for row in images)
    return float(bits_per_byte(model, documents, token_bytes=np.ones(256, dtype=np.int64), streams=64).bits_per_byte * np.log(2))


@torch.no_grad()
def draw(model: Any, path: str | Path, *, columns: int = 8, rows: int = 4, seed: int = 0) -> None:
    """Write a PNG of digits that `model` generates, each from the black pixel that every image begins with."""
    try:
        from matplotlib.image import imsave
    except ImportError:
        raise MissingExtraError("matplotlib", extra="eval") from None
    made = generate(model, [[0]] * (columns * rows), SIDE * SIDE - 1, seed=seed).tokens
    images = np.stack([np.concatenate([[0], np.asarray(t)]) for t in made]).reshape(rows, columns, SIDE, SIDE)
    sheet = images.transpose(0, 2, 1, 3).reshape(rows * SIDE, columns * SIDE).astype(np.uint8)
    imsave(path, np.kron(sheet, np.ones((4, 4), dtype=np.uint8)), cmap="gray", vmin=0, vmax=255)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="MNIST pixel by pixel: Memformer and Transformer-XL at equal operations.")
    parser.add_argument("folder", help="of the MNIST files")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training steps of Memformer (default 5)")
    parser.add_argument("--batch-size", type=int, default=64, help="images side by side (default 64)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default 0.002)")
    parser.add_argument("--scored", type=int, default=500, help="test images that are scored (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", help="write generated digits to this PNG")
    parser.add_argument("--json", help="write the result to this file")
    given = parser.parse_args(arguments)
    learning, aside = Images(read_idx(given.folder, "train-images-idx3-ubyte")), read_idx(given.folder, "t10k-images-idx3-ubyte")
    rows, spent = [], 0
    for name, config in contenders().items():
        torch.manual_seed(given.seed)
        model, cost = config.build(), step_flops(config, given.batch_size)
        training = TrainingConfig(
            minutes=given.minutes if not spent else None,
            steps=None if not spent else max(1, round(spent / cost)),
            batch_size=given.batch_size,
            segment_length=SIDE,
            horizon=ROWS_A_WINDOW,
            optimizer=AdamWConfig(lr=given.lr),
            rate=WarmupCosine(warmup=50),
            backend=Backpropagation(),
            seed=given.seed,
            save_every=1_000_000,
        )
        with tempfile.TemporaryDirectory() as out:
            ended = train(model, training.lanes(learning), training, out, quiet=True)
        model.eval()
        spent = spent or ended.steps * cost
        row = {
            "name": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": ended.steps,
            "tokens": ended.tokens,
            "seconds": round(ended.seconds, 1),
            "petaflops": round(ended.steps * cost / 1e15, 4),
            "nats_per_pixel": round(score(model, aside[: given.scored]), 4),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        if name == "memformer" and given.digits:
            draw(model, given.digits, seed=given.seed)
    result = {"machine": describe(), "command": f"python -m memseq.recipes.memformer_mnist MNIST --minutes {given.minutes}", "rows": rows}
    if given.json:
        Path(given.json).write_text(json.dumps(result | {"seed": given.seed, "scored_images": given.scored}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
