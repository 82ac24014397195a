"""How long a benchmark may take: what ``--seconds`` promises for the whole command, shared out among its measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from zoo.console import clock, print_line
from zoo.errors import UsageError

CALLS = 8
"""Fewest calls of a contender for one batch: one to check it, three to warm it up and three rounds of one, and one in reserve."""
TUNING = 30
"""Calls more where settings are chosen by measurement."""
OVERHEAD = 2.0
"""Seconds beside the calls for one batch: measuring the roofline's limits before and after."""
AFTER = 3.0
"""Seconds kept for tables and pictures, besides a tenth of all for what takes longer than was thought."""
COMPILE_FROM = 60.0
"""Seconds for one batch from which torch.compile, which compiles for tens of them, takes part."""
SHORTEST, PAUSE = 0.05, 0.05
"""Seconds of load in one turn at the least, and between two."""


@dataclass
class Budget:
    """``total`` seconds for the whole command since ``began`` (of ``time.monotonic``); 0 is no limit."""

    total: float = 0.0
    began: float = field(default_factory=time.monotonic)
    places: int = 1
    """Pairs of a model and a device still to be measured."""

    def left(self) -> float:
        """Seconds left for the next pair; infinite without a limit."""
        if not self.total:
            return math.inf
        return max(0.0, self.total - AFTER - self.total / 10 - (time.monotonic() - self.began)) / max(1, self.places)

    def affordable(self, batches: Sequence[int], cost: float, name: str) -> tuple[Sequence[int], float]:
        """The smallest of ``batches`` and those after it that fit, and the seconds for each; ``cost`` is that of one image
        in the fewest calls of all contenders.

        Raises:
            UsageError: not even the smallest fits.
        """
        left = self.left()
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
                print_line(f"skipped  batch {batch} (no time for it within --seconds {self.total:g})")
        return kept, left / len(kept)

    def turn(self, turns: int, name: str) -> float:
        """Seconds for each of equal ``turns`` of the next pair; UsageError if that is less than a turn can be."""
        left = self.left() / turns - PAUSE
        if left < SHORTEST:
            need = math.ceil(self.total + turns * (SHORTEST + PAUSE))
            raise UsageError(f"--seconds {self.total:g} is too short ({name}, {turns} turns); give about --seconds {need}")
        return left


def announce(name: str, batches: Sequence[int], seconds: float) -> None:
    """Before measuring: how long it will take, ``seconds`` for each batch size."""
    count = f"{len(batches)} batch size{'' if len(batches) == 1 else 's'}"
    print_line(f"expect   about {clock(len(batches) * seconds)} for {name}: {count}")
