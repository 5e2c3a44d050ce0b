r"""What people put around an answer that says nothing: emphasis, quotes, code fences, `\boxed{}`, a full stop."""

import re
import unicodedata

_FENCED = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_SENTENCE = re.compile(r"(?:the )?(?:final )?(?:answer|result)(?: is)?:? +", re.IGNORECASE)
_COMMAND = re.compile(r"\\(?:boxed|text(?:bf|rm|it)?|math(?:rm|bf|it)) ?\{")
_PAIRS = (
    *(("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`")),
    *(('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’")),
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")),
)


def unwrapped(text: str) -> str:
    r"""`text` without what is around all of it: `**42**`, `"blue"`, `\boxed{42}`, `$42$`, `The answer is 42.`"""
    text = text.strip()
    while True:
        inner = _without_one(text).strip()
        if inner in ("", text):
            return text
        text = inner


def _without_one(text: str) -> str:
    if text[:1].isdigit() and text[-1:].isdigit():  # most answers
        return text
    if match := _FENCED.fullmatch(text):
        return str(match[1])
    if match := _SENTENCE.match(text):
        return text[match.end() :]
    if (match := _COMMAND.match(text)) and braced(text, match.end()) == text[match.end() : -1]:
        return text[match.end() : -1]
    for opening, closing in _PAIRS:
        inner = text[len(opening) : -len(closing)]
        if inner and text == f"{opening}{inner}{closing}" and opening not in inner and closing not in inner:
            return inner
    # A full stop, but no ellipsis; an exclamation mark behind a word, for behind a number it is a factorial.
    if text.endswith(".") and not text.endswith(".."):
        return text[:-1]
    return text[:-1] if text.endswith("!") and text[-2:-1].isalpha() else text


def braced(text: str, start: int) -> str | None:
    """What stands before the brace that closes the one just before `start`."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def same_text(a: str, b: str) -> bool:
    """Whether two answers are the same string, but for case, white space and what is around them (`unwrapped`)."""
    return _plain(a) == _plain(b) or _plain(unwrapped(a)) == _plain(unwrapped(b))


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split()).casefold()
