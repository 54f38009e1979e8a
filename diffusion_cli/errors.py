"""The errors a user can meet: one class per exit code, each with what to type next."""


class DcliError(Exception):
    """What went wrong and what to type: printed as `error: ...` and `hint: ...`.

    Args:
        message: `<where>: <what is wrong>`, lower case, no full stop.
        hint: One thing to type or to change.
        code: A stable word for scripts, printed as `error[CODE]`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code

    def render(self) -> str:
        """The lines printed on stderr."""
        tag = f"error[{self.code}]" if self.code else "error"
        tail = f"\nhint: {self.hint}" if self.hint else ""
        return f"{tag}: {self.message}{tail}"


class ConfigError(DcliError):
    """The command or the config is wrong (exit 2); may carry several findings."""

    exit_code = 2

    def __init__(
        self, message: str, hint: str = "", more: "list[ConfigError] | None" = None
    ) -> None:
        super().__init__(message, hint)
        self.more = more or []

    def render(self) -> str:
        """Every finding, each with its own hint."""
        own = [super().render()] if self.message else []
        return "\n".join(own + [error.render() for error in self.more])


class UnknownName(ConfigError):
    """A component that does not exist."""


class DataError(DcliError):
    """The data set is missing, broken or does not fit (exit 3)."""

    exit_code = 3


class CheckpointError(DcliError):
    """A checkpoint is missing, damaged or does not fit (exit 4)."""

    exit_code = 4


class EnvironmentFault(DcliError):
    """The machine lacks a device, a package or the network (exit 5)."""

    exit_code = 5


class StorageError(DcliError):
    """The disk is full, read-only or locked by another run (exit 6)."""

    exit_code = 6


class NumericsError(DcliError):
    """A loss, a gradient or a sample is not finite (exit 7)."""

    exit_code = 7


class OutOfMemory(DcliError):
    """The device or the host ran out of memory (exit 8)."""

    exit_code = 8


class WorkerError(DcliError):
    """A worker or a rank died or hangs (exit 9)."""

    exit_code = 9


class SweepError(DcliError):
    """A sweep finished, but some of its jobs failed (exit 10)."""

    exit_code = 10


class Stopped(DcliError):
    """A signal ended the command after a clean save (exit 128 + its number)."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    def render(self) -> str:
        """A stop is not an error: the message stands alone."""
        return self.message
