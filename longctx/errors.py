"""What a person at the terminal is told in place of a run."""

from longctx import redaction


class CannotRunError(ValueError):
    """What keeps a run from starting; the message is one line for the person at the terminal."""


class SettingError(CannotRunError):
    """A setting that cannot be used; what has the shape of a secret is masked.

    example: lines of what can be, shown below the error.
    """

    def __init__(self, variable: str, value: object, problem: str, example: str = ""):
        super().__init__(redaction.masked(f"{variable}={value}: {problem}"))
        self.example = example


class SettingErrors(CannotRunError):
    """Several settings that cannot be used."""

    def __init__(self, problems: list[SettingError]):
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def raise_any(problems: list[SettingError]) -> None:
    """Raises the SettingError, or SettingErrors where there are several."""
    if problems:
        raise problems[0] if len(problems) == 1 else SettingErrors(problems)
