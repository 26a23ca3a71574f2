import re

import pytest

from tests.runs import ROOT

PINNED = re.compile(r"^([a-z0-9-]+)==([^ \\\n]+)", re.MULTILINE)
LOCKS = ["requirements.lock", "requirements-build.lock"]


def pinned(*names):
    return [pair for name in names for pair in PINNED.findall((ROOT / name).read_text())]


def test_locks_hold_every_requirement_in_its_version_but_torch():
    requirements = set(pinned("requirements.txt", "requirements-dev.txt"))
    torch = {pair for pair in requirements if pair[0] == "torch"}
    assert len(torch) == 1
    assert requirements - set(pinned(*LOCKS)) == torch
    model_package = re.search(r"MODEL_PACKAGE := (.*)==(.*)", (ROOT / "Makefile").read_text())
    assert model_package.groups() in pinned(*LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_of_a_lock_has_hashes_and_none_an_address(name):
    entries = (ROOT / name).read_text().replace("\\\n", "").splitlines()
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^#]*?)?( +--hash=sha256:[0-9a-f]{64})+", entry)
    # No line can name an index, a file or a repository: each is a version and its hashes.
    assert len(entries) == len(pinned(name)) > 0


def test_what_hangs_on_the_build_of_torch_is_not_locked():
    names = {name for name, _ in pinned(*LOCKS)}
    assert not [name for name in names if re.match("torch$|triton$|cuda-|nvidia-", name)]
