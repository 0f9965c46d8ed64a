"""The base of every error that a person is meant to read."""


class PostriderError(Exception):
    """A mistake or a condition that a person can mend.

    `message` says what is wrong and where; `hint` says the next step. The command line prints both and
    never a traceback.
    """

    exit_code = 1
    """Of a command, or a daemon, that ends with it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(PostriderError):
    """Bad arguments or a bad configuration: it stays so until a person mends it, and starting again is in
    vain."""

    exit_code = 2


class HostExhausted(PostriderError):
    """Our own host lacks what a connection needs: descriptors, memory or ports. Nothing was sent."""
