"""What a user can write by mistake, and the sentence that answers it: rows of a program, its error, and the error's text."""

from typing import TypeAlias

Row: TypeAlias = tuple[str, type[Exception], str]
