"""What `check_memory` hands back: a row per law, a table as text, a dict for JSON, and an error that names what is broken."""

import math
from dataclasses import dataclass
from typing import Any

from memseq.errors import ContractError

__all__ = ["Report", "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one law has shown: its largest deviation, measured against `tolerance`, and where that was."""

    law: str
    claim: str
    passed: bool
    deviation: float
    tolerance: float
    where: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.law} at {self.where}: deviation {self.deviation:.2g}, tolerance {self.tolerance:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values; an infinite deviation (a fact that is false, a crash) is null."""
        return {
            "law": self.law,
            "claim": self.claim,
            "passed": self.passed,
            "deviation": self.deviation if math.isfinite(self.deviation) else None,
            "tolerance": self.tolerance,
            "where": self.where,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """The proof of one memory."""

    subject: str  # the config, as it prints itself
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every law that was asked for holds."""
        return not self.broken

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the laws that do not hold."""
        return tuple(row.law for row in self.rows if not row.passed)

    def __getitem__(self, law: str) -> Row:
        for row in self.rows:
            if row.law == law:
                return row
        raise KeyError(law)

    def raise_if_broken(self) -> None:
        """Raise `ContractError`, which names each broken law, its largest deviation and where; do nothing if all hold."""
        if self.broken:
            found = "; ".join(str(row) for row in self.rows if not row.passed)
            raise ContractError(f"{self.subject} breaks the law of {found}", report=self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"subject": self.subject, "passed": self.passed, "broken": list(self.broken), "laws": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        table = [("law", "holds", "deviation", "tolerance", "seconds", "where")]
        for row in self.rows:
            verdict = "yes" if row.passed else "NO"
            table.append((row.law, verdict, f"{row.deviation:.1e}", f"{row.tolerance:.0e}", f"{row.seconds:.2f}", row.where))
        widths = [max(len(line[i]) for line in table) for i in range(5)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(line[:5], widths, strict=True)), line[5]]) for line in table]
        verdict = f"breaks the law of {', '.join(self.broken)}" if self.broken else "keeps the law"
        return "\n".join([self.subject, *lines, f"{verdict} ({sum(row.seconds for row in self.rows):.1f} s)"])
