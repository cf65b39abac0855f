"""Step, link and message times of a simulated pair of draft and target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Times of one pair on its hardware, in milliseconds.

    A step of the target over rows of one width takes

        target_ms + row_ms * (rows - 1) + token_ms * (rows * max(width, padded) - padded)

    Rows that the engine cannot pad to one width take a step each.
    """

    target_ms: float
    """Target step over one row of one token."""
    token_ms: float
    """Each further token of a target step."""
    draft_ms: float
    """Draft step on the device."""
    cloud_draft_ms: float = 0.0
    """Step of the cloud draft over one session; 0: the cloud has no draft."""
    hint_ms: float = 0.0
    """Time that exit heads add to a step that evaluates them."""
    rtt_ms: float = 0.0
    batch: tuple[float, ...] = (1.0, 1.45, 1.62)
    """Times of a draft step over one, two, … branches, relative to one branch. Its length is the
    largest batch that the device uses."""
    message_ms: float = 0.08
    """Time of the device for each message."""
    cloud_message_ms: float = 0.04
    """Time of the cloud for each message, deciding and committing included: 0.04 to 0.05 measured
    with 16 to 128 devices."""
    segments: int = 3
    """Segments of a target without exit heads."""
    exits: tuple[float, ...] = ()
    """Share of the tokens that each exit head predicts, one head for each inner segment boundary;
    empty: no exit heads."""
    row_ms: float = 0.0
    """Each further row of a target step, in addition to its tokens."""
    padded: int = 1
    """Least tokens of a row; shorter rows are padded."""
    cloud_draft_text_ms: float = 0.0
    """Each further session of a cloud draft step."""
    cloud_draft_read_ms: float = 0.0
    """Each further token that a cloud draft step reads of each session."""

    @property
    def layers(self) -> int:
        """Layers of the simulated target; each segment is one layer."""
        return len(self.exits) + 1 if self.exits else self.segments

    def step(self, width: int, rows: int = 1) -> float:
        """Seconds of a target step over `rows` rows of `width` tokens."""
        tokens = rows * max(width, self.padded) - self.padded
        return (self.target_ms + self.row_ms * (rows - 1) + self.token_ms * tokens) / 1e3

    def cloud_draft(self, sessions: int, width: int = 1) -> float:
        """Seconds of a cloud draft step that reads `width` tokens of each of `sessions`."""
        reading = self.cloud_draft_read_ms * sessions * (width - 1)
        return (self.cloud_draft_ms + self.cloud_draft_text_ms * (sessions - 1) + reading) / 1e3
