"""What many configs ask of their whole numbers."""

from typing import Any

from memseq.errors import ConfigError

__all__ = ["check_at_least_one"]


def check_at_least_one(config: Any, *names: str) -> None:
    """Raise `ConfigError` where one of these fields is below 1; None, where a field may be None, is its default."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
