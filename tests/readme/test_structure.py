"""The README can be read at night: its list of sections, its lines, its tables."""

import re

import pytest

from tests.helpers.contract import README, ROOT
from tests.helpers.readme import (
    BLOCKS,
    HEADING,
    SECTIONS,
    SHELLS,
    commands,
    without_code,
)

PROSE = without_code(README)
LIST = README.partition("\n## ")[0]
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
LONGEST_LINE = 100  # characters of prose; a cell of a table cannot be wrapped
LONGEST_PARAGRAPH = 5  # lines
# Machines of others than the reader, and the hosts of packages.
FOREIGN = re.compile(r"pypi\.org|pythonhosted|/tmp/|/home/\w")


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def paragraphs():
    """Return each paragraph, list item or row of a table as a list of its lines."""
    found = []
    for part in re.split(r"\n\s*\n", PROSE):
        for item in re.split(r"\n(?=\s*(?:- |\d+\. |\|))", part.strip("\n")):
            found.append(item.splitlines())
    return found


def test_every_section_is_in_the_list():
    headings = HEADING.findall(PROSE)[1:]
    assert len(headings) == len(set(headings))
    assert [name for name, _ in LINK.findall(LIST)] == headings


@pytest.mark.parametrize("target", sorted({link for _, link in LINK.findall(PROSE)}))
def test_every_link_has_its_section(target):
    assert target in {f"#{slug(heading)}" for heading in SECTIONS}


def test_no_line_of_prose_is_too_long():
    lines = [line for line in PROSE.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


def test_no_paragraph_is_too_long():
    assert [each for each in paragraphs() if len(each) > LONGEST_PARAGRAPH] == []


def test_the_quickstart_has_at_most_six_lines():
    found = commands("Quickstart")
    lines = [line for block in found for line in block.text.splitlines()]
    assert len(lines) <= 6
    assert "-X PATCH" in lines[-1]
    assert found[-1].output


def test_the_table_of_errors_has_one_status_a_row():
    _, _, table = SECTIONS["Errors"].partition("|---|---|\n")
    rows = table.partition("\n\n")[0].splitlines()
    statuses = [re.match(r"\| (\d{3}) \|", row)[1] for row in rows]
    assert statuses == sorted(set(statuses))


def test_what_needs_bash_is_marked_as_bash():
    needs_bash = re.compile(r"<<<|\[\[|pipefail|##\*")
    found = [block for block in BLOCKS if block.language in SHELLS]
    assert [
        b.text for b in found if b.language == "sh" and needs_bash.search(b.text)
    ] == []


def test_no_host_of_packages_and_no_path_of_a_machine_is_named():
    assert FOREIGN.findall(README) == []


def test_every_block_of_commands_is_followed_by_a_test():
    """The examples of the API have their output as JSON, and are run one by one."""
    folder = ROOT / "tests" / "readme"
    sources = "".join(path.read_text("utf-8") for path in folder.glob("test_*.py"))
    found = {
        block.section
        for block in BLOCKS
        if block.language in SHELLS
        and block.output_language != "json"
        and "venv .venv" not in block.text
    }
    followed = set(re.findall(r'(?:follow|commands)\("([^"]+)"', sources))
    assert found - {"systemd"} == followed - {"systemd", "Quickstart"}
