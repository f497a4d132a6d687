"""What a server knows of one model of its repository: its versions, and which of them can be used."""

from __future__ import annotations

from gruve.model.versions import About, Entry, Version


class ServedModel:
    """One name of the repository: its versions when the folder was last read, and which of them could not be loaded."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.failures: dict[str, str] = {}
        """By digest, why a version whose config could be read could not be loaded."""
        self._about: dict[str, About] = {}

    @property
    def name(self) -> str:
        """The name by which requests ask for the model."""
        return self.entry.name

    @property
    def newest(self) -> Version | None:
        """The version that the name alone means: the highest that is not broken; None if all are."""
        return next((version for version in reversed(self.entry.versions) if not self.why(version)), None)

    @property
    def state_reason(self) -> str:
        """Why the model cannot be used; "" if it can."""
        return "" if self.newest is not None else self.why(self.entry.versions[-1])

    def why(self, version: Version) -> str:
        """Why a version cannot be used; "" if it can, as far as is known."""
        return version.why or self.failures.get(version.digest, "")

    def with_digest(self, digest: str) -> Version | None:
        """The last version that has this digest and is not broken."""
        found = [version for version in self.entry.versions if version.digest == digest and not self.why(version)]
        return found[-1] if found else None

    def about(self, version: Version) -> About:
        """What the tokenizer and the card of a version say; read once."""
        if version.digest not in self._about:
            self._about[version.digest] = About.read(version)
        return self._about[version.digest]
