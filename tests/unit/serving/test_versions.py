import pytest

from condconv_serve.serving.versions import versions_to_retire, wanted_versions


@pytest.mark.parametrize(
    ("usable", "newest", "aliased", "pinned", "unwanted", "wanted"),
    [
        ("", 1, "", "", "", ""),
        ("1", 1, "", "", "", "1"),
        ("1 2 10", 1, "", "", "", "10"),
        ("1 2 10", 2, "", "", "", "2 10"),
        ("1 2", 9, "", "", "", "1 2"),
        ("1 2 10", 1, "1", "", "", "1 10"),
        ("1 2 10", 1, "", "2", "", "2 10"),
        ("1 2 10", 1, "", "", "10", "2"),
        ("1 2 10", 1, "10", "", "10", "2 10"),
        ("1", 1, "2", "3", "", "1"),  # what isn't there can't be had
        ("1", 1, "", "", "1", ""),
    ],
)
def test_wanted_versions(usable, newest, aliased, pinned, unwanted, wanted):
    found = wanted_versions(
        usable.split(), newest=newest, aliased=aliased.split(), pinned=pinned.split(), unwanted=unwanted.split()
    )
    assert found == set(wanted.split())


@pytest.mark.parametrize(
    ("serving", "wanted", "unwanted", "retired"),
    [
        ("1", "1", "", ""),
        ("1 2", "2", "", "1"),
        ("1 2 10", "2 10", "", "1"),
        ("1", "", "", ""),  # its directory is gone
        ("1 2", "", "", "1"),
        ("1", "", "1", "1"),
        ("1 2", "", "2", "2"),
        ("1", "2", "", ""),  # 2 isn't served yet
    ],
)
def test_versions_to_retire(serving, wanted, unwanted, retired):
    assert versions_to_retire(serving.split(), wanted.split(), unwanted.split()) == set(retired.split())
