"""The clauses of CONTRACT.md and the tests that cite them belong together."""

import ast
import io
import re
import tokenize
from functools import cache

import pytest

from tests.helpers.contract import ROOT

FOLDER = ROOT / "tests"
DEFINED = re.compile(r"^- ([A-Z]\d{1,2}) ", re.MULTILINE)
CLAUSES = DEFINED.findall((FOLDER / "CONTRACT.md").read_text("utf-8"))
CITED = re.compile(r"(?<![\w%.-])[A-Z]\d{1,2}(?![\w%])")
# As in "C4-P9-any": an id begins with its clauses.
ID = re.compile(r"(?:[A-Z]\d{1,2}-)*[A-Z]\d{1,2}(?:-|$)")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
FILES = sorted(FOLDER.rglob("test_*.py"))


def comments(text):
    """Return the comments of a module."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


@cache
def citations(path):
    """Return the clauses that the tests of a file cite, and all that the file names."""
    text = path.read_text("utf-8")
    by_tests = set()
    others = set(CITED.findall(" ".join(comments(text))))

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED):
            found = CITED.findall(ast.get_docstring(node) or "")
            target = others if isinstance(node, ast.Module) else by_tests
            target.update(found)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            beginning = ID.match(node.value)
            if beginning:
                by_tests.update(re.findall(r"[A-Z]\d{1,2}", beginning[0]))

    return by_tests, by_tests | others


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_clause_that_is_cited_is_in_the_contract(path):
    _, named = citations(path)
    assert named - set(CLAUSES) == set()


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_clause_of_the_contract_is_cited_by_a_test(clause):
    assert [path.name for path in FILES if clause in citations(path)[0]]


def test_every_clause_is_there_once():
    assert len(CLAUSES) == len(set(CLAUSES))
