"""Places that all callers of a gateway share: open requests, dialogs, viewers, bytes of request bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from services.messages.api_error import ApiError


class SharedPlaces:
    """So many places in all, and at most half of them for one API key. For one event loop.

    A caller without a key (None) is a program on this machine (the gateway is open), and may use all places.
    """

    def __init__(
        self,
        num_places: int,
        *,
        what: str,
        code: str,
        num_of_key: int | None = None,
        retry_after_s: float = 1.0,
    ) -> None:
        """`what` names the places in messages, `code` in errors. `num_of_key` is one key's share; default: half."""
        self._num_places = num_places
        self._num_of_key = max(1, num_places // 2) if num_of_key is None else num_of_key
        self._what, self._code, self._retry_after_s = what, code, retry_after_s
        self._num_taken = 0
        self._num_taken_by = Counter[str]()  # by key id

    def take(self, key_id: str | None, num: int = 1, *, num_of_key: int | None = None) -> None:
        """Take places, which must be given back. Raises ApiError 429 if there are not so many left.

        `num_of_key` is a limit of the caller's own key, if that is lower than the share of every key.
        """
        if key_id is not None:
            limit = self._num_of_key if num_of_key is None else min(self._num_of_key, num_of_key)
            self._check(num, self._num_taken_by[key_id], limit, "this key")
        self._check(num, self._num_taken, self._num_places, "this gateway")
        self._num_taken += num
        if key_id is not None:
            self._num_taken_by[key_id] += num

    def give_back(self, key_id: str | None, num: int = 1) -> None:
        """Give back what was taken."""
        self._num_taken -= num
        if key_id is not None:
            self._num_taken_by[key_id] -= num
            if not self._num_taken_by[key_id]:
                del self._num_taken_by[key_id]

    @contextmanager
    def hold(self, key_id: str | None, *, num_of_key: int | None = None) -> Generator[None]:
        """Take a place for the block. Raises ApiError 429 if there is none."""
        self.take(key_id, num_of_key=num_of_key)
        try:
            yield
        finally:
            self.give_back(key_id)

    def _check(self, num: int, num_taken: int, limit: int, whose: str) -> None:
        if num_taken + num > limit:
            message = (
                f"{whose} has {num_taken} {self._what} and got {num} more, wanted at most {limit} at once: "
                "try again when some have ended"
            )
            raise ApiError(429, self._code, message, retry_after_s=self._retry_after_s)
