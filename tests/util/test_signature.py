"""Options against signatures: unknown keywords are explained; whole numbers become floats where one is wanted."""

import inspect
import json
import typing
from collections.abc import Mapping

import numpy as np
import pytest

import molequi as mq
from molequi.errors import ConfigError, UnknownKeywordError
from molequi.util.signature import check_call, check_keywords, with_floats


@check_keywords({"patience": 'validation={"patience": …}', "degree": "terms=[EquivarianceSelection()]"})
def train(model: str, *, epochs: int = 1, validation: Mapping[str, int] | None = None) -> int:
    """Train."""
    return epochs


def test_a_decorated_function_is_the_same_for_users_and_editors():
    assert train("m", epochs=3) == 3 and train.__doc__ == "Train." and train.__name__ == "train"
    assert list(inspect.signature(train).parameters) == ["model", "epochs", "validation"]
    assert typing.get_type_hints(train)["epochs"] is int
    check_call(train, {"epochs": 2}, where="train", leave_out=("model",))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        train(epochs=1)


def test_an_old_keyword_names_the_new_way_with_the_value():
    with pytest.raises(
        UnknownKeywordError, match=r"^train\(patience=20\): now validation=\{\"patience\": 20\}$"
    ):
        train("m", patience=20)
    with pytest.raises(UnknownKeywordError, match=r'^train\(patience=…\): now validation=\{"patience": …\}$'):
        train("m", patience=[1])
    with pytest.raises(UnknownKeywordError, match=r"^train\(degree='evidence'\): now terms="):
        train("m", degree="evidence")


def test_an_unknown_keyword_names_the_nearest_and_all_are_told_at_once():
    with pytest.raises(UnknownKeywordError) as info:
        train("m", ephocs=3, patience=2)
    first, second = str(info.value).splitlines()
    assert first == "train(ephocs=3): train has no such argument; did you mean 'epochs'?"
    assert second.startswith("train(patience=2)")
    assert isinstance(info.value, TypeError) and isinstance(info.value, ConfigError)


def test_constructors():
    class Thing:
        @check_keywords()
        def __init__(self, *, size: int = 1) -> None:
            self.size = size

    assert Thing(size=2).size == 2
    with pytest.raises(UnknownKeywordError, match=r"^Thing\(siez=2\): Thing has no such argument.*'size'"):
        Thing(siez=2)


def _public() -> list[str]:
    """Names of the public functions and classes that take only the arguments of their signature."""
    closed = []
    for name in mq.__all__:
        thing = getattr(mq, name)
        kinds = {p.kind for p in inspect.signature(thing).parameters.values()} if callable(thing) else set()
        if inspect.isabstract(thing) or thing is mq.Hook or inspect.Parameter.VAR_KEYWORD in kinds:
            continue  # base classes, and functions that hand options on
        if len(kinds) and thing is not mq.collate:  # collate takes one argument, by position
            closed.append(name)
    return closed


@pytest.mark.parametrize("name", _public())
def test_every_public_function_and_class_explains_an_unknown_argument(name):
    with pytest.raises(UnknownKeywordError, match=rf"^{name}\(nonsense=1\): {name} has no such argument"):
        getattr(mq, name)(nonsense=1)


def test_options_that_are_handed_to_a_reader_are_checked_too(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("smiles\nO\n")
    with pytest.raises(ConfigError, match="'conformers'"):
        mq.load_dataset(path, conformer=2)


def test_old_names_in_a_file():
    def read(*, path: str, skip: str = "") -> None: ...

    with pytest.raises(ConfigError, match=r"^data\.rejected: now skip=<path>$"):
        check_call(read, {"path": "a", "rejected": True}, where="data", renamed={"rejected": "skip=<path>"})


def test_whole_numbers_become_floats_only_where_a_float_is_wanted():
    def f(
        *, a: float, b: float | None, c: int, d: list[float], e: float | str, g: dict[str, float]
    ) -> None: ...

    given = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "g": {"x": 1}}
    found = with_floats(f, given)
    assert found == given
    assert [type(found[k]) for k in "abcde"] == [float, float, int, int, int]
    assert with_floats(f, {"a": True, "b": None}) == {"a": True, "b": None}
    assert with_floats(f, {"a": True})["a"] is True


def test_numbers_of_numpy_are_numbers():
    def f(*, epochs: int, lr: float) -> None: ...

    given = {"epochs": np.int64(3), "lr": np.float32(0.5)}
    check_call(f, given, where="f")
    found = with_floats(f, given)
    assert found == {"epochs": 3, "lr": 0.5} and [type(v) for v in found.values()] == [int, float]
    backbone = mq.EGNN(elements=["H"], channels=np.int64(4), layers=np.int32(1), cutoff=np.float32(3))
    assert type(backbone.hparams["channels"]) is int and json.dumps(backbone.hparams)
    assert mq.BatchSize(np.int64(2)).structures == 2
