"""What benchmarks of this folder share as commands: their help, --json and --threads, and how a result is kept."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch


def command(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the file's own words, with --json and --threads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the measured numbers go")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    return parser


def begun(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; torch has its threads and its seed."""
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def keep(result: dict[str, Any], file: Path | None) -> None:
    """Print what was reached, and write all of it."""
    print(json.dumps(result["reached"], indent=1))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
