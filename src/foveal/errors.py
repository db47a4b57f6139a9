"""The few errors that a person can mend; the command line prints them as one line."""


def one_line(said: object, longest: int | None = None) -> str:
    """Say in one line what an error of somebody else's, or a value, says in several.

    Args:
        said: the error, whose kind is named where it says nothing; or the value.
        longest: signs that are kept; none: all.
    """
    line = " ".join(str(said).split())[:longest]
    return line or (type(said).__name__ if isinstance(said, Exception) else "")


class UserError(Exception):
    """Something that a person can mend: what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A recipe or an override holds a name or a value that we do not know."""


class DataError(UserError):
    """A file of examples, or an image that one of them names, cannot be used."""


class ModelError(UserError):
    """A model folder cannot be read, or does not fit its data."""


class RunError(UserError):
    """A run cannot start, go on, or be resumed."""


class StoreError(UserError):
    """A store of objects does not answer, or not to us: no fault of what was asked for."""

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether it may be another time: nobody could be reached."""
