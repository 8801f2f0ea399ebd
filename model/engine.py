"""The engine: continuous batching of dialogs that look again at their cameras before every token.

No threads, no Ray, no clock of its own: whoever owns it gives it frames and dialogs, and asks for steps. One step is
one forward for all dialogs of all cameras; dialogs on one camera read its one copy of the frames.

Letters: B rows (dialogs of a step), T text tokens, F frames, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.attention import FrameView
from model.cache import FrameRing, SeenFrame, TextCache
from model.dialog import Dialog, Options, Spoken, Unread
from model.layer import Sight
from model.network import StreamChat


class EngineFull(RuntimeError):
    """All places for dialogs are taken."""


@dataclass(frozen=True, slots=True)
class Made:
    """One token of one dialog, and the newest frame that it could see (None: no frame at all)."""

    dialog_id: str
    token_id: int
    frame_id: str | None
    captured_s: float | None
    text_index: int
    finished: Literal["stop", "length"] | None


class Engine:
    """Cameras' rings, dialogs, and steps. For a caller's mistake a method raises ValueError and changes nothing."""

    def __init__(self, model: StreamChat, *, max_dialogs: int = 256, prefill_tokens: int = 512) -> None:
        """`max_dialogs`: open at once. `prefill_tokens`: of a prompt, read in one forward."""
        self.model, self.config = model, model.config
        weight = model.language.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.prefill_tokens = prefill_tokens
        self._rings: dict[str, FrameRing] = {}
        self._dialogs: dict[str, Dialog] = {}
        with torch.inference_mode():
            self._text = TextCache(self.config, self.dtype, self.device, max_dialogs=max_dialogs)

    # Cameras

    @property
    def cameras(self) -> dict[str, SeenFrame | None]:
        """The cameras that have a ring, and each one's newest frame."""
        return {camera: ring.newest for camera, ring in self._rings.items()}

    @torch.inference_mode()
    def add_camera(self, camera: str) -> None:
        """Make an empty ring for a new camera."""
        if camera in self._rings:
            raise ValueError(f"camera: {camera!r} is there already")
        self._rings[camera] = FrameRing(self.config, self.dtype, self.device)

    def drop_camera(self, camera: str) -> None:
        """Forget a camera and its frames; no dialog may be open on it."""
        self._ring(camera)
        if users := [dialog.dialog_id for dialog in self._dialogs.values() if dialog.camera == camera]:
            raise ValueError(f"camera: {camera!r} still has dialogs: {', '.join(users[:5])}")
        del self._rings[camera]

    def add_frame(self, camera: str, frame_id: str, captured_s: float, features: Tensor) -> None:
        """A frame arrives: `features` [P, Dv], the vision encoder's output."""
        self.add_frames(camera, [(frame_id, captured_s, features)])

    @torch.inference_mode()
    def add_frames(self, camera: str, frames: Sequence[tuple[str, float, Tensor]]) -> None:
        """Frames arrive, oldest first: their chains are computed in one forward (a camera new to this replica)."""
        ring = self._ring(camera)
        shape = (self.config.vision.num_visual_tokens, self.config.vision.hidden_size)
        for frame_id, _, features in frames:
            if tuple(features.shape) != shape:
                raise ValueError(
                    f"features of frame {frame_id}: got shape {tuple(features.shape)}, wanted {shape}"
                )
        if not frames:
            return
        features = torch.stack([features for _, _, features in frames])
        chain = self.model.visual_chain(features.to(self.device, self.dtype))
        watching = [dialog for dialog in self._dialogs.values() if dialog.camera == camera]
        for number, (frame_id, captured_s, _) in enumerate(frames):
            slot = ring.add(frame_id, captured_s, [(keys[number], values[number]) for keys, values in chain])
            for dialog in watching:
                dialog.frame_index[slot] = dialog.clock.frame_arrived()

    # Dialogs

    @property
    def dialogs(self) -> dict[str, Dialog]:
        """The open dialogs, to look at, not to change."""
        return self._dialogs

    def open(
        self,
        dialog_id: str,
        camera: str,
        token_ids: Sequence[int],
        options: Options,
        *,
        spoken: Sequence[Spoken] = (),
        asked_s: float = 0.0,
    ) -> None:
        """Begin a dialog: reads all of the prompt but its last token, which the first step reads.

        Args:
            dialog_id: a new name.
            camera: one that was added; it may be without frames yet.
            token_ids: the prompt, through the chat template.
            options: how to watch and speak.
            spoken: what another engine already answered, to go on from there; counts for `max_tokens`.
            asked_s: when the question was asked, on the cameras' clock; needed with `spoken` only.

        Raises:
            EngineFull: `max_dialogs` are open.
        """
        ring = self._ring(camera)
        if dialog_id in self._dialogs:
            raise ValueError(f"dialog_id: {dialog_id!r} is open already")
        if len(spoken) >= options.max_tokens:
            raise ValueError(
                f"spoken: got {len(spoken)} tokens, wanted fewer than max_tokens {options.max_tokens}"
            )
        self._check_tokens([*token_ids, *(token.token_id for token in spoken)], 0)
        if not token_ids:
            raise ValueError("token_ids: got none, wanted at least one")
        slot = self._text.take()
        if slot is None:
            raise EngineFull(f"all {self._text.max_dialogs} dialogs are taken")
        seed = secrets.randbits(63) if options.seed is None else options.seed
        dialog = Dialog(dialog_id, camera, options, slot, ring, seed)
        self._dialogs[dialog_id] = dialog
        try:
            self._read(dialog, dialog.hear(token_ids, spoken, asked_s))
        except BaseException:  # out of memory, say: the place must not stay taken
            self.close(dialog_id)
            raise

    def ask(self, dialog_id: str, token_ids: Sequence[int], options: Options | None = None) -> None:
        """The next question of a dialog whose turn is over; its text so far is kept. `options` None: as before."""
        dialog = self._dialog(dialog_id)
        if dialog.finished is None:
            raise ValueError(f"dialog_id: {dialog_id!r} is still speaking")
        if not token_ids:
            raise ValueError("token_ids: got none, wanted at least one")
        self._check_tokens(token_ids, self._text.lengths[dialog.slot] + 1)
        dialog.options = options or dialog.options
        self._read(dialog, dialog.ask(token_ids, dialog.live.num_arrived - 1))

    @torch.inference_mode()
    def close(self, dialog_id: str) -> None:
        """End a dialog and free its place."""
        dialog = self._dialog(dialog_id)
        del self._dialogs[dialog_id]
        self._text.give_back(dialog.slot)

    # Steps

    def step(self, dialog_ids: Sequence[str]) -> list[Made]:
        """One token for each of these dialogs, in their order, in one forward. A finished dialog makes no more."""
        logits = self.logits(dialog_ids)
        likeliest: list[int] = logits.argmax(-1).tolist()
        made: list[Made] = []
        for number, dialog_id in enumerate(dialog_ids):
            drawn = self._dialogs[dialog_id].options.temperature > 0.0
            token_id = self._dialogs[dialog_id].draw(logits[number]) if drawn else likeliest[number]
            made.append(self.say(dialog_id, token_id))
        return made

    @torch.inference_mode()
    def logits(self, dialog_ids: Sequence[str]) -> Tensor:
        """Logits [B, vocabulary] of each dialog's next token, from the frames there are now. Changes no dialog."""
        dialogs = [self._dialog(dialog_id) for dialog_id in dialog_ids]
        if len(set(dialog_ids)) != len(dialogs):
            raise ValueError("dialog_ids: got one twice")
        if done := [dialog.dialog_id for dialog in dialogs if dialog.finished is not None]:
            raise ValueError(f"dialog_ids: {done[0]!r} has finished its turn")
        if not dialogs:
            return torch.empty(0, self.config.vocab_size, dtype=self.dtype, device=self.device)
        rows = sorted(dialogs, key=lambda dialog: dialog.slot)
        tokens = self._tensor([[dialog.pending or 0] for dialog in rows])
        index = self._tensor([[dialog.pending_index] for dialog in rows])
        state = self._text.reading([dialog.slot for dialog in rows], 1)
        hidden = self.model.read(tokens, index, self._sights(rows), state=state)[:, 0]
        if rows != dialogs:
            row_of = {dialog.dialog_id: row for row, dialog in enumerate(rows)}
            hidden = hidden.index_select(0, self._tensor([row_of[dialog_id] for dialog_id in dialog_ids]))
        return self.model.logits(hidden)

    def say(self, dialog_id: str, token_id: int) -> Made:
        """Take this token as the one made from the last `logits`."""
        dialog = self._dialog(dialog_id)
        self._text.lengths[dialog.slot] += 1
        frame = dialog.newest()
        dialog.say(token_id, full=self._text.lengths[dialog.slot] + 1 >= self._text.max_tokens)
        captured = (None, None) if frame is None else (frame.frame_id, frame.captured_s)
        return Made(dialog_id, token_id, *captured, dialog.pending_index, dialog.finished)

    # Inside

    def _sights(self, rows: Sequence[Dialog]) -> list[Sight]:
        """One read for the rows of each ring: frames are not copied, and each row keeps its own clock."""
        groups: dict[int, list[int]] = {}
        for row, dialog in enumerate(rows):
            groups.setdefault(id(dialog.ring), []).append(row)
        sights: list[Sight] = []
        for group in groups.values():
            members = [rows[row] for row in group]
            view = FrameView(
                self.model.rope,
                self._tensor([[dialog.pending_index] for dialog in members]),
                self._tensor([dialog.ring_index for dialog in members]),
                self._tensor([[dialog.visible(dialog.ring.num_arrived - 1)] for dialog in members]),
                dtype=self.dtype,
            )
            picked = self._tensor(group) if len(groups) > 1 else None
            sights.append(Sight(view, members[0].ring.keys_values, picked))
        return sights

    @torch.inference_mode()
    def _read(self, dialog: Dialog, unread: Sequence[Unread]) -> None:
        """Put tokens into the text cache, a chunk at a time."""
        keys_values = dialog.ring.keys_values
        rows = {newest: dialog.visible(newest) for newest in {token.newest for token in unread}}
        for start in range(0, len(unread), self.prefill_tokens):
            chunk = unread[start : start + self.prefill_tokens]
            index = self._tensor([[token.place for token in chunk]])
            visible = self._tensor([[rows[token.newest] for token in chunk]])
            view = FrameView(
                self.model.rope, index, self._tensor([dialog.ring_index]), visible, dtype=self.dtype
            )
            state = self._text.reading([dialog.slot], len(chunk))
            tokens = self._tensor([[token.token_id for token in chunk]])
            self.model.read(tokens, index, [Sight(view, keys_values)], state=state)
            self._text.lengths[dialog.slot] += len(chunk)

    def _check_tokens(self, token_ids: Sequence[int], num_before: int) -> None:
        room = self._text.max_tokens - num_before - 1  # one token must fit after them
        if len(token_ids) > room:
            raise ValueError(f"token_ids: got {len(token_ids)} tokens, wanted at most {room}")
        if wrong := [token for token in token_ids if not 0 <= token < self.config.vocab_size]:
            raise ValueError(f"token_ids: got {wrong[0]}, wanted 0 to {self.config.vocab_size - 1}")

    def _ring(self, camera: str) -> FrameRing:
        if camera not in self._rings:
            raise ValueError(f"camera: got {camera!r}, which was not added")
        return self._rings[camera]

    def _dialog(self, dialog_id: str) -> Dialog:
        if dialog_id not in self._dialogs:
            raise ValueError(f"dialog_id: got {dialog_id!r}, which is not open")
        return self._dialogs[dialog_id]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self.device)
