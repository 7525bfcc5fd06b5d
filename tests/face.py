"""The names that a user has: checkers take them from the imports, programs from `fundl.__all__`."""

from typing import Final, cast

import fundl

PUBLIC: Final = cast("list[str]", vars(fundl)["__all__"])
