"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Optional

from ._errors import ApiError, RuvectorError, StaleRead


@dataclass(frozen=True)
class Retry:
    """Errors that may pass by themselves are tried again, after pauses that double and have some chance in them.

    A pause is never shorter than what the service asks for (`Retry-After`); where it asks for more than `longest_s`, the
    error is raised at once.
    """

    attempts: int = 4
    """Requests in all, the first one included."""
    first_s: float = 0.1
    """The first pause, at most."""
    longest_s: float = 10.0
    """No pause is longer."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_s < 0 or self.longest_s < 0:
            raise ValueError("attempts: at least 1; first_s and longest_s: not negative")

    def pause(self, attempt: int, error: RuvectorError) -> Optional[float]:
        """Seconds to wait after this attempt, counted from 1; `None`: not again."""
        if attempt >= self.attempts or not error.retryable or isinstance(error, StaleRead):
            return None
        own = min(self.first_s * 2.0 ** min(attempt - 1, 30), self.longest_s) * random.uniform(0.5, 1.0)
        asked = error.retry_after if isinstance(error, ApiError) else None
        if asked is None:
            return own
        # What the service asks for is the same for all who were refused: they must not come back together.
        return None if asked > self.longest_s else asked + own


NEVER = Retry(attempts=1)
