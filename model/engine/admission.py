"""Which dialogs are open, which of them are suspended, and which pages of the text cache each may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.engine.dialog import Dialog, PriorToken
from model.engine.options import DialogOptions
from model.engine.pages import PagePool


class EngineFull(RuntimeError):
    """There is no capacity for one more dialog or camera."""


class Admission:
    """Admits a turn if all of its tokens will fit, so that no admitted dialog runs out of memory.

    Suspended dialogs give way: the one that was suspended first is closed first.
    """

    def __init__(
        self,
        pages: PagePool,
        page_tokens: int,
        clear_page: Callable[[int], None],
        *,
        max_dialogs: int,
        context_window: int,
        vocab_size: int,
    ) -> None:
        """`pages`: those of the text cache, each of `page_tokens` tokens; `clear_page` sets one to zeros."""
        self._pages, self._page_tokens, self._clear_page = pages, page_tokens, clear_page
        self._max_dialogs, self._context_window = max_dialogs, context_window
        self._vocab_size = vocab_size
        self.dialogs: dict[str, Dialog] = {}  # all that are open
        self.suspended: dict[str, None] = {}  # names; the longest suspended first

    def dialog(self, dialog_id: str) -> Dialog:
        """An open dialog; raises ValueError if there is none of this name."""
        if dialog_id not in self.dialogs:
            raise ValueError(f"dialog_id: got {dialog_id!r}, which is not open")
        return self.dialogs[dialog_id]

    def on_camera(self, camera: str) -> tuple[list[str], list[str]]:
        """The active and the suspended dialogs of a camera."""
        names = [name for name, dialog in self.dialogs.items() if dialog.camera == camera]
        active = [name for name in names if name not in self.suspended]
        return active, [name for name in names if name in self.suspended]

    def watched_cameras(self) -> set[str]:
        """The cameras of all active dialogs."""
        return {dialog.camera for name, dialog in self.dialogs.items() if name not in self.suspended}

    # Checks

    def check_prompt(
        self, token_ids: Sequence[int], options: DialogOptions, prior_tokens: Sequence[PriorToken] = ()
    ) -> None:
        """Raises ValueError for tokens or options that the model cannot take."""
        if not token_ids:
            raise ValueError("token_ids: got none, wanted at least one")
        if (num_prior := len(prior_tokens)) >= options.max_tokens:
            raise ValueError(
                f"prior_tokens: got {num_prior} tokens, wanted fewer than max_tokens {options.max_tokens}"
            )
        room, last = self._context_window - 1, self._vocab_size - 1  # one token must fit after them
        if (num_tokens := len(token_ids) + num_prior) > room:
            raise ValueError(f"token_ids: got {num_tokens} tokens, wanted at most {room}")
        every_id = [*token_ids, *(token.token_id for token in prior_tokens)]
        if wrong := [token_id for token_id in every_id if not 0 <= token_id <= last]:
            raise ValueError(f"token_ids: got {wrong[0]}, wanted 0 to {last}")
        if wrong := [token_id for token_id, _ in options.logit_bias if not 0 <= token_id <= last]:
            raise ValueError(f"logit_bias: got token {wrong[0]}, wanted 0 to {last}")

    def check_step(self, dialog_ids: Sequence[str]) -> list[Dialog]:
        """The dialogs of a step; raises ValueError for one that is not open, finished or named twice."""
        dialogs = [self.dialog(dialog_id) for dialog_id in dialog_ids]
        if len(set(dialog_ids)) != len(dialogs):
            raise ValueError("dialog_ids: got one twice")
        if done := [dialog.dialog_id for dialog in dialogs if dialog.finish_reason is not None]:
            raise ValueError(f"dialog_ids: {done[0]!r} has finished its turn")
        return dialogs

    # Pages

    def reserve(self, dialog: Dialog, num_tokens: int) -> None:
        """Reserve pages for a turn with `num_tokens` of prompt and its answer; raises EngineFull.

        Closes suspended dialogs if their pages are needed.
        """
        total = dialog.num_cached_tokens + num_tokens + dialog.options.max_tokens
        # Where turns are dropped, the first and the last page of the dropped range may be half empty.
        num_partial = 2 if total > self._context_window or dialog.dropped_tokens.stop else 0
        wanted = -(-min(total, self._context_window) // self._page_tokens) + num_partial
        suspended = [name for name in self.suspended if name != dialog.dialog_id]
        available = self._pages.num_unreserved
        available += sum(self._pages.num_held(self.dialogs[name]) for name in suspended)
        if wanted - self._pages.num_reserved(dialog) > available:
            raise EngineFull(
                f"no memory for a dialog of {total} tokens beside the {len(self.dialogs)} there are"
            )
        while not self._pages.reserve(dialog, wanted):
            self.remove(self.dialogs[suspended.pop(0)])

    def make_room(self, dialog: Dialog, num_new: int) -> None:
        """Allocate pages for `num_new` more tokens; drops the oldest turns if the context window is full."""
        window, size = self._context_window, self._page_tokens
        while dialog.num_cached_tokens + num_new > window or _indices_in_use(dialog) > window:
            freed = dialog.drop_oldest_turn(size)
            if freed is None:
                break
            for page in freed:
                self._pages.free(dialog, page)
        while len(dialog.pages) * size < dialog.num_computed_tokens + num_new:
            dialog.pages.append(self._pages.allocate(dialog))
            if len(dialog.pages) * size > dialog.num_computed_tokens + num_new:
                # Its end is read, masked, before it is written: NaN of an earlier dialog would reach this one.
                self._clear_page(dialog.pages[-1])

    def is_window_full(self, dialog: Dialog) -> bool:
        """Whether the token that is appended next is the last one that fits."""
        return len(dialog.turns) < 2 and dialog.num_cached_tokens + 2 >= self._context_window

    # Dialogs

    def admit(self, dialog: Dialog, num_tokens: int) -> None:
        """Open a dialog whose prompt has `num_tokens`; raises EngineFull, or ValueError for a name in use."""
        if dialog.dialog_id in self.dialogs:
            raise ValueError(f"dialog_id: {dialog.dialog_id!r} is open already")
        if len(self.dialogs) - len(self.suspended) >= self._max_dialogs:
            raise EngineFull(f"all {self._max_dialogs} dialogs are taken")
        self.reserve(dialog, num_tokens)
        self.dialogs[dialog.dialog_id] = dialog

    def suspend(self, dialog: Dialog) -> None:
        """Keep a dialog's text only until its pages are needed."""
        self._pages.reserve(dialog, self._pages.num_held(dialog))
        self.suspended[dialog.dialog_id] = None
        if len(self.suspended) > self._max_dialogs:
            self.remove(self.dialogs[next(iter(self.suspended))])

    def remove(self, dialog: Dialog) -> None:
        """Forget a dialog and free its pages."""
        del self.dialogs[dialog.dialog_id]
        self.suspended.pop(dialog.dialog_id, None)
        self._pages.release(dialog)


def _indices_in_use(dialog: Dialog) -> int:
    """Temporal indices from the oldest turn to the newest token."""
    return dialog.last_temporal_index - dialog.turns[0].temporal_index + 1
