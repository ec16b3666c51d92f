"""The README taken apart: its sections, code blocks, and the output under them."""

import re
from dataclasses import dataclass

from tests.helpers.contract import README

FENCED = r"^```(\w+)\n(.*?)^```$"
BLOCK = re.compile(FENCED, re.MULTILINE | re.DOTALL)
# The output of a block of commands stands directly under it.
BLOCK_WITH_OUTPUT = re.compile(
    rf"{FENCED}(?:\n```(json|text)\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
HEADING = re.compile(r"^#{1,4} (.*)$", re.MULTILINE)
SHELLS = ("sh", "bash")


@dataclass
class Block:
    """A code block, and the output that is shown under it."""

    section: str
    language: str
    text: str
    output_language: str  # "" if none is shown, as is the output
    output: str


def without_code(text):
    """Return the text with its code blocks as empty lines."""
    return BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)


def _list_sections():
    """Return [(heading, text below it up to the next heading), …]."""
    prose = re.sub(
        BLOCK, lambda block: re.sub("[^\n]", "x", block[0]), README
    )  # A comment of a shell script is no heading.
    found = list(HEADING.finditer(prose))
    ends = [heading.start() for heading in found[1:]] + [len(README)]
    return [
        (heading[1], README[heading.end() : end])
        for heading, end in zip(found, ends, strict=True)
    ]


SECTIONS = dict(_list_sections())
BLOCKS = [
    Block(section, *found)
    for section, text in SECTIONS.items()
    for found in BLOCK_WITH_OUTPUT.findall(text)
]


def blocks(language):
    """Return the text of each code block of this language."""
    return [block.text for block in BLOCKS if block.language == language]


def commands(section):
    """Return the blocks of commands in a section."""
    found = [
        block
        for block in BLOCKS
        if block.section == section and block.language in SHELLS
    ]
    assert found, f"{section} has no commands"
    return found


def texts(section):
    """Return the other blocks of a section: files, lines of the log."""
    return [
        block.text
        for block in BLOCKS
        if block.section == section and block.language == "text"
    ]
