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
AFTER, AFTER_IMPORTS = 3.0, 1.5
"""Seconds kept for tables and pictures, and how many times the imports these take where the imports took longer: on a busy
machine both do. A tenth of all is kept besides for what takes longer than was thought."""
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
    imports: float = 0.0
    """Seconds that importing torch and the like took."""
    cost: float = 0.0
    """Seconds per image in the fewest calls of all contenders of this pair."""
    pace: float = 1.0
    """How many times its share of the time a batch took, the slowest so far."""

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
        """The smallest of ``batches`` and those after it that fit, and the seconds for each; ``cost`` is that of one image
        in the fewest calls of all contenders.

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
        """Seconds for ``batch``, the next of so many ``batches``, by what is left now; 0, said in a line, if it does not fit."""
        left = self.left()
        if left < self.pace * (OVERHEAD + batch * self.cost):
            self._skip(batch)
            return 0.0
        return left / batches

    def _skip(self, batch: int) -> None:
        print_line(f"skipped  batch {batch} (no time for it within --seconds {self.total:g})")

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
