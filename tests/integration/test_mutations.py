"""The mutation run itself: nothing is left out of it, it tells killed from alive, and a sample of it in the default run.

Owns no guard: what kills a mutant is the test of the thing that it was made of. Whole: `python -m tests.mutations`.
"""

import random
from pathlib import Path

import pytest

from tests.mutations import lua
from tests.mutations.driver import REPOSITORY, Verdict, all_mutants, answering, copied_tree, judge, run, scripts
from tests.mutations.mutant import Mutant
from tests.mutations.patches import PATCHES, Patch, PatchOutdated, mutant_of
from tests.mutations.table import EQUIVALENT, INTEGRATION, TESTS

# What the default run takes a few mutants of: their tests are quick.
SAMPLED = ("raise.lua", "admit.lua", "standing.lua", "lease.lua")
SAMPLE = 3


def test_every_script_has_tests_that_answer_for_it() -> None:
    """Without an entry in tests/mutations/table.py nobody would notice that a new script's guards go."""
    assert scripts().keys() == TESTS.keys()


def test_the_tests_that_answer_are_there() -> None:
    named = {
        name.partition("::")[0] for tests in (*TESTS.values(), *(patch.tests for patch in PATCHES)) for name in tests
    }
    assert [name for name in sorted(named) if not (REPOSITORY / INTEGRATION / f"{name}.py").exists()] == []


def test_whoever_answers_first_for_a_script_runs_on_both_kinds_of_server() -> None:
    first = {tests[0].partition("::")[0] for tests in TESTS.values()}
    texts = {name: (REPOSITORY / INTEGRATION / f"{name}.py").read_text(encoding="utf-8") for name in first}
    assert [name for name, text in texts.items() if "pytestmark = on_one_server" in text] == []


def test_what_is_called_equivalent_is_still_there_to_be_called_so() -> None:
    for name, reasons in EQUIVALENT.items():
        path = scripts()[name]
        whats = {mutant.what for mutant in lua.mutants(str(path), (REPOSITORY / path).read_text(encoding="utf-8"))}
        assert reasons.keys() <= whats, name
        assert all(reasons.values())


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{Path(patch.path).stem}: {patch.what}")
def test_a_patch_applies_and_leaves_valid_python(patch: Patch) -> None:
    text = (REPOSITORY / patch.path).read_text(encoding="utf-8")
    compile(mutant_of(patch, text).applied_to(text), patch.path, "exec")


def test_a_patch_whose_guard_moved_says_so() -> None:
    with pytest.raises(PatchOutdated, match="0 places"):
        mutant_of(PATCHES[0], "nothing of the kind\n")


SCRIPT = """-- A script
local head = redis.call('HMGET', KEYS[1], 'epoch', 'n')
if ARGV[1] == '1' and head[1] then return {'stale'} end
local n = math.max(tonumber(head[2] or '0'), 7)
if n > 3 then redis.call('SET', KEYS[2], n) end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10, '*', 'n', n)
return {n, head[1] and 'old' or 'new'}
"""


def test_a_script_has_a_mutant_for_each_guard_operand_bound_and_write() -> None:
    mutants = lua.mutants("a.lua", SCRIPT)
    assert [(mutant.line, mutant.applied_to(SCRIPT).splitlines()[mutant.line - 1]) for mutant in mutants] == [
        (3, "if false then return {'stale'} end"),
        (3, "if head[1] then return {'stale'} end"),
        (3, "if ARGV[1] == '1' then return {'stale'} end"),
        (4, "local n = 7"),
        (4, "local n = tonumber(head[2] or '0')"),
        (4, "local n = math.max(tonumber('0'), 7)"),
        (4, "local n = math.max(tonumber(head[2]), 7)"),
        (5, "if true then redis.call('SET', KEYS[2], n) end"),
        (5, "if false then redis.call('SET', KEYS[2], n) end"),
        (5, "if n > 3 then do end end"),
        (6, "do end"),
        (6, "redis.call('XADD', KEYS[3], '*', 'n', n)"),
        (7, "return {n, 'new'}"),
        (7, "return {n, 'old' or 'new'}"),
        (7, "return {n, head[1] or 'new'}"),
        (7, "return {n, head[1] and 'old'}"),
    ]


def test_what_is_no_lua_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        lua.mutants("a.lua", "return 1\n[[long]] ~ $")


def test_a_change_that_changes_nothing_lives_and_a_guard_that_is_gone_does_not() -> None:
    path = scripts()["raise.lua"]
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    comment = Mutant(str(path), 1, "another comment", 0, len(text.splitlines()[0]), "-- Says the same")
    with copied_tree() as copy:
        assert judge(copy, comment, ("test_raise_guards",)).by is None
        assert (copy / path).read_text(encoding="utf-8") == text
        guard = all_mutants()["raise.lua"][0]
        assert "test_raise_guards" in str(judge(copy, guard, answering("raise.lua", guard)).by)


def test_no_mutant_lives(long: bool) -> None:
    """A few of them by default; all under --long, which takes half an hour."""
    names = list(all_mutants())
    verdicts: list[Verdict] = []
    if long:
        run(names, on_verdict=verdicts.append)
    else:
        mutants = [(name, mutant) for name in SAMPLED for mutant in all_mutants()[name]]
        with copied_tree() as copy:
            for name, mutant in random.Random(len(mutants)).sample(mutants, SAMPLE):
                verdicts.append(judge(copy, mutant, answering(name, mutant)))
    assert [str(verdict.mutant) for verdict in verdicts if verdict.by is None] == []
