"""What `memseq probe` wrote, opened again, and a page of several models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memseq.errors import ConfigError, DataError
from memseq.report.html import page

__all__ = ["FORMAT", "opened", "written"]

FORMAT = "memseq.probe.1"

Result = dict[str, Any]


def opened(path: str | Path) -> Result:
    """What `memseq probe` left in a folder (or in a probe.json). Raises `DataError` where it is no such thing."""
    path = Path(path)
    file = path / "probe.json" if path.is_dir() else path
    if not file.is_file():
        if (path / "parts").is_dir():
            raise DataError(f"the probe in {path} is not finished; go on with it by memseq probe CHECKPOINT --out {path} --resume")
        raise DataError(f"there is no {file}; name a folder that memseq probe wrote")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not readable JSON ({error}); probe the model again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        other = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{file} is no result of memseq probe (format {other!r}, expected {FORMAT!r})")
    return found


def written(results: Sequence[Result], out: str | Path, *, overwrite: bool = False) -> Path:
    """The page of `results` in the file `out`. Raises `ConfigError` where there is one and it may not be replaced."""
    out = Path(out)
    if not results:
        raise ConfigError("there is nothing to report; name folders that memseq probe wrote")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file by --out, such as {out / 'report.html'}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; --overwrite replaces it, --out names another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(results), encoding="utf-8")
    return out
