"""The README taken apart: its code blocks, commands and examples."""

import re

from tests.helpers.contract import README

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(README)


def blocks(kind):
    """Return the text of each code block of this language."""
    return [text for language, text in BLOCKS if language == kind]
