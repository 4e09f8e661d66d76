"""A release as projectors tell each other theirs: the fold's version and the read models.

Owns who can keep or build which generation. A projector that meets what it does not know leaves it to one that does.
"""

from typing import NamedTuple, Self

from shared.fold import FOLD_VERSION
from shared.read_models import READ_MODELS


class Release(NamedTuple):
    fold: int
    models: tuple[str, ...]

    @classmethod
    def this(cls) -> Self:
        return cls(FOLD_VERSION, tuple(READ_MODELS))

    @classmethod
    def parse(cls, fold: bytes, models: bytes) -> Self:
        return cls(int(fold), tuple(models.decode().split(",")))

    def knows(self, other: "Release") -> bool:
        """Whether this release builds, and once built keeps, what `other` asks for."""
        return self.fold >= other.fold and set(self.models) >= set(other.models)

    def announced_by(self, owner: str) -> str:
        """The name under which a projector of this release counts among those alive."""
        return f"{owner} {self.fold} {','.join(self.models)}"

    @classmethod
    def announced(cls, name: str) -> "Release | None":
        """The release of a projector that is alive; None for a name that tells none."""
        match name.split(" "):
            case [_, fold, models]:
                return cls(int(fold), tuple(models.split(",")))
        return None

    def __str__(self) -> str:
        return f"fold {self.fold} with {', '.join(self.models)}"
