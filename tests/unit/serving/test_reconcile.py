"""Every decision about one model's versions, as a table.

Versions are written as `name:files`: `1:a` is version 1 with the files `a`.
"""

import pytest

from condconv_serve.serving.fingerprint import Fingerprint
from condconv_serve.serving.reconcile import (
    Forgive,
    Load,
    Retire,
    ServedVersions,
    SetAliases,
    Stored,
    WaitToSettle,
    WantAgain,
    Wishes,
    followed_models,
    reconcile,
)
from condconv_serve.store.aliases import Alias


def files(name: str) -> Fingerprint:
    """Any fingerprint: all that counts is whether two are equal."""
    return ((name, 0, 0, 0),)


def versions(text):
    split = (entry.split(":") for entry in text.split())
    return {version: files(name) for version, name in split}


def aliases(text):
    """`stable=1 canary=1,2+3`: what each alias points at, and to what it mirrors."""
    split = ((name, *to.partition("+")) for name, to in (entry.split("=") for entry in text.split()))
    return {
        name: Alias(versions=dict.fromkeys(to.split(","), 1), mirror=dict.fromkeys(mirror.split(), 100))
        for name, to, _, mirror in split
    }


def decide(
    stored="",
    *,
    served="",
    failed="",
    newest=1,
    pinned="",
    unwanted="",
    store_aliases="",
    in_force="",
    settled="",
    may_load=True,
):
    """What is decided, without setting aliases where nothing is said of them."""
    actions = reconcile(
        Stored(versions=versions(stored), aliases=aliases(store_aliases)),
        ServedVersions(
            versions=versions(served),
            failed=versions(failed),
            aliases=aliases(in_force),
            settled={version: None if found == files("-") else found for version, found in versions(settled).items()},
        ),
        Wishes(newest=newest, pinned=pinned.split(), unwanted=versions(unwanted), may_load=may_load),
    )
    return [action for action in actions if action != SetAliases({})]


def WAIT(version: str, name: str) -> WaitToSettle:  # noqa: N802 - an action among actions
    return WaitToSettle(version, files(name))


def LOAD(version: str, name: str) -> Load:  # noqa: N802
    return Load(version, files(name))


@pytest.mark.parametrize(
    ("situation", "first"),
    [
        # what lies in the store is loaded, if it isn't served as it lies there
        ({"stored": ""}, None),
        ({"stored": "1:a"}, WAIT("1", "a")),
        ({"stored": "1:a", "served": "1:a"}, None),
        ({"stored": "1:b", "served": "1:a"}, WAIT("1", "b")),
        # the newest are wanted, by number
        ({"stored": "1:a 2:a 10:a"}, WAIT("10", "a")),
        ({"stored": "1:a 2:a 10:a", "served": "10:a"}, None),
        ({"stored": "1:a 2:a 10:a", "served": "10:a", "newest": 2}, WAIT("2", "a")),
        ({"stored": "1:a 2:a 10:a", "newest": 2}, WAIT("10", "a")),
        ({"stored": "1:a 2:a", "served": "2:a", "newest": 9}, WAIT("1", "a")),
        # what an alias points at, and what was asked for, is wanted too, but only if it is there
        ({"stored": "1:a 2:a", "served": "2:a", "store_aliases": "stable=1"}, WAIT("1", "a")),
        ({"stored": "1:a 2:a", "served": "2:a", "store_aliases": "both=1,2"}, WAIT("1", "a")),
        ({"stored": "1:a 2:a", "served": "2:a", "pinned": "1"}, WAIT("1", "a")),
        ({"stored": "2:a", "served": "2:a", "pinned": "1"}, None),
        ({"stored": "2:a", "served": "2:a", "pinned": "3"}, None),
        # what was unloaded is not wanted, unless an alias or somebody wants it nevertheless
        ({"stored": "1:a 2:a", "served": "1:a", "unwanted": "2:a"}, None),
        ({"stored": "1:a 2:a 3:a", "served": "1:a", "unwanted": "3:a"}, WAIT("2", "a")),
        ({"stored": "1:a", "unwanted": "1:a"}, None),
        ({"stored": "1:a 2:a", "served": "1:a", "unwanted": "2:a", "store_aliases": "x=2"}, WAIT("2", "a")),
        ({"stored": "1:a 2:a", "served": "1:a", "unwanted": "2:a", "pinned": "2"}, WAIT("2", "a")),
        # what an alias mirrors to comes after all that callers need, unless somebody unloaded it
        ({"stored": "1:a 2:a 3:a", "served": "3:a", "store_aliases": "x=1+2"}, WAIT("1", "a")),
        ({"stored": "1:a 2:a 3:a", "served": "1:a 3:a", "store_aliases": "x=1+2"}, WAIT("2", "a")),
        ({"stored": "1:a 2:a 3:a", "served": "1:a 3:a", "unwanted": "2:a", "store_aliases": "x=1+2"}, None),
        ({"stored": "1:a 2:a 3:a", "served": "1:a 3:a", "failed": "2:a", "store_aliases": "x=1+2"}, None),
        ({"stored": "1:a 3:a", "served": "1:a 3:a", "store_aliases": "x=1+2"}, None),
        # what failed is not tried again, and the next one steps in
        ({"stored": "1:a", "failed": "1:a"}, None),
        ({"stored": "1:a 2:a", "failed": "2:a"}, WAIT("1", "a")),
        ({"stored": "1:a 2:a", "failed": "2:a", "pinned": "2", "served": "1:a"}, None),
        ({"stored": "1:a 2:a", "failed": "2:a", "store_aliases": "x=2", "served": "1:a"}, None),
        # new files failed, but the old copy is served: it stays the newest, and isn't tried again
        ({"stored": "1:a 2:b", "served": "2:a", "failed": "2:b"}, None),
        # files must settle before they are loaded
        ({"stored": "1:a", "settled": "1:a"}, LOAD("1", "a")),
        ({"stored": "1:b", "settled": "1:a"}, WAIT("1", "b")),
        ({"stored": "1:b", "settled": "1:-"}, None),
        ({"stored": "1:a 2:b", "settled": "2:-", "newest": 2}, WAIT("1", "a")),
        ({"stored": "1:a 2:b", "settled": "2:- 1:a", "newest": 2}, LOAD("1", "a")),
        ({"stored": "1:a 2:b", "settled": "2:b", "newest": 2}, LOAD("2", "b")),
        ({"stored": "1:b", "served": "1:a", "settled": "1:b"}, LOAD("1", "b")),
        # while the service ends, nothing more is loaded
        ({"stored": "1:a", "may_load": False}, None),
        ({"stored": "1:a", "settled": "1:a", "may_load": False}, None),
    ],
)
def test_what_is_loaded_next(situation, first):
    actions = [action for action in decide(**situation) if not isinstance(action, SetAliases)]
    assert actions == ([] if first is None else [first])


@pytest.mark.parametrize(
    ("situation", "retired"),
    [
        ({"stored": "1:a 2:a", "served": "1:a 2:a"}, "1"),
        ({"stored": "1:a 2:a 10:a", "served": "1:a 2:a 10:a", "newest": 2}, "1"),
        ({"stored": "1:a 2:a 10:a", "served": "1:a 2:a 10:a"}, "1 2"),
        # what is wanted for another reason stays
        ({"stored": "1:a 2:a", "served": "1:a 2:a", "store_aliases": "x=1"}, ""),
        # what an alias mirrors to stays while it is there and nobody unloads it
        ({"stored": "1:a 2:a", "served": "1:a 2:a", "store_aliases": "x=2+1"}, ""),
        ({"stored": "2:a", "served": "1:a 2:a", "store_aliases": "x=2+1"}, "1"),
        ({"stored": "1:a 2:a", "served": "1:a 2:a", "unwanted": "1:a", "store_aliases": "x=2+1"}, "1"),
        ({"stored": "1:a 2:a", "served": "1:a 2:a", "pinned": "1"}, ""),
        # what is gone from the store goes, but not the last of its model
        ({"stored": "2:a", "served": "1:a 2:a"}, "1"),
        ({"stored": "1:a", "served": "1:a 2:a"}, "2"),
        ({"stored": "", "served": "1:a"}, ""),
        ({"stored": "", "served": "1:a 2:a 10:a"}, "1 2"),
        # unless it was unloaded on request
        ({"stored": "", "served": "1:a", "unwanted": "1:a"}, "1"),
        ({"stored": "", "served": "1:a 2:a", "unwanted": "2:a"}, "2"),
        ({"stored": "1:a", "served": "1:a", "unwanted": "1:a"}, "1"),
        # the old one stays until the new one serves, even if that has failed or is still being copied
        ({"stored": "2:b", "served": "1:a", "failed": "2:b"}, ""),
        ({"stored": "2:b", "served": "1:a", "settled": "2:-"}, ""),
        ({"stored": "2:b", "served": "1:a", "may_load": False}, ""),
        ({"stored": "1:b", "served": "1:a", "failed": "1:b"}, ""),
        # what an alias points at that stays as it was is held too, although it is gone from the store
        ({"stored": "2:a", "served": "1:a 2:a", "store_aliases": "x=7", "in_force": "x=1"}, ""),
        ({"stored": "2:a", "served": "1:a 2:a", "store_aliases": "x=1"}, ""),
        ({"stored": "2:a", "served": "1:a 2:a", "in_force": "x=1"}, "1"),
    ],
)
def test_what_is_retired(situation, retired):
    actions = [action for action in decide(**situation) if not isinstance(action, SetAliases)]
    assert actions == [Retire(version) for version in retired.split()]


@pytest.mark.parametrize(
    ("store_aliases", "in_force", "result", "broken"),
    [
        ("", "", "", ""),
        ("x=1", "", "x=1", ""),
        ("x=1,2 y=2", "x=2", "x=1,2 y=2", ""),
        ("", "x=1", "", ""),
        # it points at what isn't served, so it stays as it was, if that can still be
        ("x=7", "x=1", "x=1", "x"),
        ("x=1,7", "x=1", "x=1", "x"),
        ("x=7", "x=8", "", "x"),
        ("x=7", "", "", "x"),
        ("x=7 y=2 z=7", "x=1", "x=1 y=2", "x z"),
    ],
)
def test_aliases(store_aliases, in_force, result, broken):
    actions = reconcile(
        Stored(versions=versions("1:a 2:a"), aliases=aliases(store_aliases)),
        ServedVersions(versions=versions("1:a 2:a"), aliases=aliases(in_force)),
        Wishes(newest=2),
    )
    assert actions == (SetAliases(aliases(result), tuple(broken.split())),)


def test_an_alias_moves_before_its_old_version_is_retired():
    actions = decide("1:a 2:a", served="1:a 2:a", store_aliases="x=2", in_force="x=1")
    assert actions == [SetAliases(aliases("x=2")), Retire("1")]


def test_nothing_is_retired_and_no_alias_moves_while_something_is_to_be_loaded():
    actions = decide("2:a 3:a", served="1:a 2:a", store_aliases="x=3", in_force="x=2")
    assert actions == [WAIT("3", "a")]


@pytest.mark.parametrize(
    ("situation", "actions"),
    [
        # changed files are another chance, for what failed and for what was unloaded
        ({"stored": "1:b", "failed": "1:a"}, [Forgive("1"), WAIT("1", "b")]),
        ({"stored": "1:b", "unwanted": "1:a"}, [WantAgain("1"), WAIT("1", "b")]),
        ({"stored": "1:b", "failed": "1:a", "unwanted": "1:a"}, [Forgive("1"), WantAgain("1"), WAIT("1", "b")]),
        ({"stored": "1:b", "failed": "1:a", "unwanted": "1:b"}, [Forgive("1")]),
        ({"stored": "1:b", "failed": "1:b", "unwanted": "1:a"}, [WantAgain("1")]),
        ({"stored": "1:c", "served": "1:a", "failed": "1:b"}, [Forgive("1"), WAIT("1", "c")]),
        ({"stored": "1:b", "failed": "1:a", "settled": "1:b"}, [Forgive("1"), LOAD("1", "b")]),
        ({"stored": "1:b", "failed": "1:a", "settled": "1:-"}, [Forgive("1")]),
        # also where that version isn't wanted now
        ({"stored": "1:b 2:a", "served": "2:a", "failed": "1:a"}, [Forgive("1")]),
        # what has gone from the store has not changed
        ({"stored": "2:a", "served": "2:a", "failed": "1:a", "unwanted": "3:a"}, []),
        # in the order of versions
        ({"stored": "10:b 9:b", "failed": "10:a 9:a"}, [Forgive("9"), Forgive("10"), WAIT("10", "b")]),
    ],
)
def test_another_chance(situation, actions):
    assert decide(**situation) == actions


@pytest.mark.parametrize(
    ("stored", "served", "followed"),
    [
        ("", "", ""),
        ("pear apple", "", "apple pear"),
        ("pear", "plum pear", "pear plum"),
    ],
)
def test_which_models_are_followed(stored, served, followed):
    assert followed_models(stored.split(), served.split()) == followed.split()
