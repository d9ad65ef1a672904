"""What participants keep between rounds: files keyed by experiment, arm, seed, participant and round.

A participant that works in round r reads what it kept in its latest round before r, and what it writes for r
is never overwritten. So a round that is run again (a dead worker, a straggler) reads the same, and gives the
same bits. In a simulation the folder is one that every node sees; experiment, arm and seed are in its path.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load, save

from kdfed.errors import MessageError, one_line
from kdfed.models import State
from kdfed.records import write_atomically

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """The files of the participants of one experiment, arm and seed.

    Names of files are made here, of what a message said: a digest is 64 lowercase hex digits, a participant
    and a round are whole numbers of at least 0, and anything else is a ``MessageError``.

    Parameters
    ----------
    root
        Their folder. It is made when the first file is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, participant: int, before: int) -> State | None:
        """Return what a participant kept in its latest round before a round; None if it has kept nothing."""
        rounds = [number for number in self._rounds(participant) if number < before]
        return load(self._file(participant, max(rounds)).read_bytes()) if rounds else None

    def save(self, participant: int, server_round: int, state: State) -> None:
        """Keep a participant's tensors of a round, unless some are kept for it already.

        What lies before the round that this one read is removed: nobody will read it.
        """
        file = self._file(participant, server_round)
        if file.exists():
            return
        write_atomically(file, save({key: value.contiguous() for key, value in state.items()}))
        earlier = sorted(number for number in self._rounds(participant) if number < server_round)
        for number in earlier[:-1]:
            self._file(participant, number).unlink(missing_ok=True)

    def load_public(self, digest: str) -> torch.Tensor | None:
        """Return the public examples with this digest; None if they are not kept."""
        file = self._public_file(digest)
        return load(file.read_bytes())["inputs"] if file.exists() else None

    def save_public(self, digest: str, inputs: torch.Tensor) -> None:
        """Keep public examples, [N, ...] as stored: once for all participants of this folder."""
        file = self._public_file(digest)
        if not file.exists():
            write_atomically(file, save({"inputs": inputs.contiguous()}))

    def _public_file(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise MessageError(
                "expected the SHA-256 of public examples, 64 lowercase hex digits, got "
                f"{one_line(repr(digest), 80)}"
            )
        return self.root / "public" / f"{digest}.safetensors"

    def _file(self, participant: int, server_round: int) -> Path:
        return self._folder(participant) / f"{_number(server_round, 'round')}.safetensors"

    def _rounds(self, participant: int) -> list[int]:
        return [int(file.stem) for file in self._folder(participant).glob("*.safetensors")]

    def _folder(self, participant: int) -> Path:
        return self.root / str(_number(participant, "participant"))


def _number(value: int, what: str) -> int:
    if not isinstance(value, int) or value < 0:
        raise MessageError(
            f"expected a {what} as a whole number of at least 0, got {one_line(repr(value), 80)}"
        )
    return value
