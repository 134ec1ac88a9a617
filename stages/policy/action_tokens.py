"""Continuous actions as tokens and back, exactly as OpenVLA does (arXiv:2406.09246, section 3.2). Numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.policy.normalization import Bounds


@dataclass(frozen=True)
class ActionTokenizer:
    """The last 256 ids of the vocabulary are action bins, the highest id the lowest bin.

    Bin edges are 256 points evenly over [-1, 1]; an action decodes to the centre of its bin, and there are 255 centres,
    so the two lowest ids decode alike.
    """

    vocab_size: int  # V, without padding; 32000 for OpenVLA-7B
    n_bins: int = 256

    @property
    def first_id(self) -> int:
        """The lowest action token."""
        return self.vocab_size - self.n_bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """(n_bins,) the bins' lower ends, and 1."""
        return np.linspace(-1.0, 1.0, self.n_bins)

    @property
    def centers(self) -> NDArray[np.float64]:
        """(n_bins - 1,) what the ids decode to, from the highest id down."""
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    def encode(self, normalized: ArrayLike) -> NDArray[np.int64]:
        """Values in [-1, 1] (clipped) of any shape -> vocabulary ids of the same shape."""
        clipped = np.clip(np.asarray(normalized, dtype=np.float64), -1.0, 1.0)
        return self.vocab_size - np.digitize(clipped, self.edges).astype(np.int64)

    def decode(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Vocabulary ids of any shape -> bin centres in (-1, 1) of the same shape; other ids take the nearest bin."""
        return self.centers[np.clip(self.vocab_size - np.asarray(tokens, dtype=np.int64) - 1, 0, self.n_bins - 2)]


@dataclass(frozen=True)
class ActionCodec:
    """Action tokens <-> what the environment takes: 6 end-effector deltas and a gripper of -1 (open) or +1 (close)."""

    tokenizer: ActionTokenizer
    bounds: Bounds  # of the suite the policy was trained on; the gripper is outside its mask

    def decode(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Tokens (..., 7) -> environment actions (..., 7): un-normalised, the gripper open at -1, closed at +1."""
        return self.to_environment(self.bounds.unnormalize(self.tokenizer.decode(tokens)))

    @staticmethod
    def to_environment(raw: ArrayLike) -> NDArray[np.float64]:
        """Actions (..., 7) as OpenVLA predicts them, gripper 0 closed to 1 open -> with the gripper open at -1, closed at +1.

        A gripper exactly between (0.5) gives 0, as upstream; no bin centre is 0.5.
        """
        action = np.array(raw, dtype=np.float64)
        action[..., -1] = -np.sign(2.0 * action[..., -1] - 1.0)
        return action

    def encode(self, action: ArrayLike) -> NDArray[np.int64]:
        """Environment actions (..., 7) -> tokens (..., 7), the inverse of `decode` up to the width of a bin."""
        raw = np.array(action, dtype=np.float64)
        raw[..., -1] = (1.0 - raw[..., -1]) / 2.0
        return self.tokenizer.encode(self.bounds.normalize(raw))
