"""What goes wrong, as exceptions."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from ._lsn import Lsn


class RuvectorError(Exception):
    """Any error of this package. `retryable`: may the same request work later?"""

    retryable = False


class ConnectionFailed(RuvectorError):
    """The service was not reached, or went away before it answered."""

    retryable = True


class BadAnswer(RuvectorError):
    """An answer that the service does not give: something else listens there, or it is of another version."""


class ApiError(RuvectorError):
    """The service answered with a problem (RFC 9457). `GET /errors/{code}` tells what a code means."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: Optional[float] = None) -> None:
        self.status = status
        """HTTP status."""
        self.code: Optional[str] = problem.get("code")
        """Stable code such as `RV1101`; `None` where a proxy answered."""
        self.title = str(problem.get("title") or f"HTTP status {status}")
        """What it is."""
        self.detail: Optional[str] = problem.get("detail")
        """What is wrong with this request."""
        self.hint: Optional[str] = problem.get("hint")
        """What to do."""
        self.position: Optional[int] = problem.get("position")
        """Where in the filter, from 1."""
        lsn = problem.get("applied_lsn")
        self.applied_lsn = None if lsn is None else Lsn(lsn)
        """Position of the index, where that matters."""
        self.retryable = bool(problem.get("retryable", status in (429, 502, 503, 504)))
        self.retry_after = retry_after
        """Seconds that the service asks to wait."""
        self.problem = problem
        """Everything it said."""
        said = f"{self.code or status}: {self.detail or self.title}"
        super().__init__(f"{said} ({self.hint})" if self.hint else said)

    @staticmethod
    def of(status: int, problem: Mapping[str, Any], retry_after: Optional[float]) -> ApiError:
        """The exception for this problem."""
        kind = {"RV1203": StaleRead, "RV1301": Overloaded}.get(str(problem.get("code")), ApiError)
        return kind(status, problem, retry_after)


class StaleRead(ApiError):
    """The position asked for by `at_least` was not reached within `timeout_ms`. `applied_lsn` says how far it came.

    It is not tried again by itself: the patience was the caller's.
    """


class Overloaded(ApiError):
    """Too many requests at once."""
