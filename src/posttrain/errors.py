"""The one exception that is the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, found before compute was spent.

    The message names the thing, what was found, what would be right and what to do. The command line prints it
    without a traceback and exits with 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps whoever mistyped `name`: the closest known name, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"
