"""Time budget of a benchmark: ``--seconds`` for the whole command, divided among its measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from zoo.console import clock, print_line
from zoo.errors import UsageError

CALLS = 11
"""Fewest calls of a contender for one batch: one to check it, three to warm it up and six rounds of one, and one in reserve."""
TUNING = 30
"""Additional calls if settings are selected by measurement."""
OVERHEAD = 2.0
"""Seconds per batch besides the calls, for measuring the roofline before and after."""
AFTER, AFTER_IMPORTS = 3.0, 1.5
"""Seconds reserved for tables and pictures, or this multiple of the import time if that is longer, as on a busy machine. Another tenth of the budget is reserved for delays."""
COMPILE_FROM = 60.0
"""Seconds for one batch from which torch.compile, which takes tens of seconds to compile, is included."""
SHORTEST, PAUSE = 0.05, 0.05
"""Smallest seconds of load in one turn, and pause between two."""


@dataclass
class Budget:
    """``total`` seconds for the whole command since ``began`` (of ``time.monotonic``); 0 is no limit."""

    total: float = 0.0
    began: float = field(default_factory=time.monotonic)
    places: int = 1
    """Remaining pairs of a model and a device."""
    imports: float = 0.0
    """Seconds for importing torch and other packages."""
    cost: float = 0.0
    """Seconds per image in the fewest calls of all contenders of this pair."""
    pace: float = 1.0
    """Largest ratio so far of a batch's time to its share."""

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds left for the next pair; infinite without a limit."""
        if not self.total:
            return math.inf
        kept = max(AFTER, AFTER_IMPORTS * self.imports) + self.total / 10
        return max(0.0, self.total - kept - self.elapsed()) / max(1, self.places)

    def affordable(self, batches: Sequence[int], cost: float, name: str) -> tuple[Sequence[int], float]:
        """The smallest of ``batches`` and the later ones that fit, and the seconds for each; ``cost`` is the time per image in the fewest calls of all contenders.

        Raises:
            UsageError: not even the smallest fits.
        """
        left, self.cost = self.left(), cost
        kept, spent = list(batches[:1]), OVERHEAD + batches[0] * cost
        if spent > left:
            need = math.ceil(self.total - left + spent)
            raise UsageError(
                f"--seconds {self.total:g} is too short ({name}, batch {batches[0]} alone takes about {spent:,.0f} s); "
                f"give about --seconds {need}"
            )
        for batch in batches[1:]:
            spent += OVERHEAD + batch * cost
            if spent <= left:
                kept.append(batch)
            else:
                self._skip(batch)
        return kept, left / len(kept)

    def share(self, batch: int, batches: int) -> float:
        """Seconds for ``batch``, the next of so many ``batches``, from the remaining time; 0, with a message, if it does not fit."""
        left = self.left()
        if left < self.pace * (OVERHEAD + batch * self.cost):
            self._skip(batch)
            return 0.0
        return left / batches

    def _skip(self, batch: int) -> None:
        print_line(f"skipped  batch {batch} (no time for it within --seconds {self.total:g})")

    def turn(self, turns: int, name: str) -> float:
        """Seconds for each of equal ``turns`` of the next pair; UsageError if that is too short."""
        left = self.left() / turns - PAUSE
        if left < SHORTEST:
            need = math.ceil(self.total + turns * (SHORTEST + PAUSE))
            raise UsageError(f"--seconds {self.total:g} is too short ({name}, {turns} turns); give about --seconds {need}")
        return left


def announce(name: str, batches: Sequence[int], seconds: float) -> None:
    """Before measuring: how long it will take, ``seconds`` for each batch size."""
    count = f"{len(batches)} batch size{'' if len(batches) == 1 else 's'}"
    print_line(f"expect   about {clock(len(batches) * seconds)} for {name}: {count}")
