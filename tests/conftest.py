"""Settings that all tests share."""

import os

# Models in tests are tiny: a second thread only waits for the first, and on a busy machine for long. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from pathlib import Path

import pytest

# Compiled programs stay between runs of the tests, but not beside those of the user.
os.environ.setdefault("MOLEQUI_CACHE", str(Path(tempfile.gettempdir()) / f"molequi-tests-{os.getuid()}"))

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first: one process runs each, while the others run the rest."""
    slow = [
        "test_accelerate.py",
        "test_notebooks.py",
        "test_all_models.py",
        "test_ranks.py",
        "test_workers.py",
    ]
    place = {name: number for number, name in enumerate(slow)}
    items.sort(key=lambda item: place.get(item.path.name, len(slow)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test begins with the same random numbers of torch, whichever tests its process ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of published data sets: the setting MOLEQUI_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MOLEQUI_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("published data sets are not on this machine (set MOLEQUI_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The project's own small data sets."""
    return REPOSITORY / "data"


@pytest.fixture(autouse=True)
def no_declared_fields():
    """Fields that a test declares are forgotten after it."""
    from molequi.graph import FIELDS

    before = dict(FIELDS)
    yield
    FIELDS.clear()
    FIELDS.update(before)
