"""What to write in place of an attribute that a module or an object does not have."""

from collections.abc import Iterable, Mapping
from typing import Any

from molequi.errors import did_you_mean

_FIT = "mq.fit(model, train, valid, epochs=…)"
_SPLIT = "data.split([0.8, 0.2], seed=0)"
_PARITY = "plotting.parity(model, data)"
OF_PACKAGE: Mapping[str, str] = {
    **dict.fromkeys(("read_csv", "read_table", "from_smiles", "smiles"), "mq.read_smiles('FILE.csv')"),
    **dict.fromkeys(("read_excel",), "mq.read_smiles(pandas.read_excel('FILE.xlsx'))"),
    **dict.fromkeys(("read_dataframe", "from_dataframe", "from_pandas", "read_df"), "mq.read_smiles(frame)"),
    **dict.fromkeys(("read_xyz", "read_traj", "read_frames"), "mq.read_extxyz('FILE.xyz')"),
    **dict.fromkeys(("read", "read_file", "load_data", "open", "data_from"), "mq.load_dataset('FILE')"),
    **dict.fromkeys(("from_ase", "read_atoms"), "mq.from_atoms(frames)"),
    **dict.fromkeys(
        ("train", "Trainer", "learn", "trainer"), f"{_FIT}, or mq.train_file('FILE'), which chooses the model"
    ),
    **dict.fromkeys(("load_model", "from_pretrained", "restore"), "mq.load('model.safetensors')"),
    **dict.fromkeys(("save_model", "dump"), "mq.save(model, 'model.safetensors')"),
    **dict.fromkeys(("optimize", "minimize", "minimise", "geometry_optimization"), "mq.relax(atoms, model)"),
    **dict.fromkeys(("simulate", "dynamics", "MD", "run_md"), "mq.md(atoms, model, time=10)"),
    **dict.fromkeys(
        ("plot", "plots", "plot_parity", "visualize"), f"from molequi import plotting; {_PARITY}"
    ),
    **dict.fromkeys(("split", "train_test_split", "random_split"), _SPLIT),
    **dict.fromkeys(("Atoms", "Molecule", "Data", "Structure"), "mq.Graph, or mq.from_atoms(frames)"),
    **dict.fromkeys(("DataLoader", "loader"), f"{_FIT}, which makes the batches"),
    **dict.fromkeys(("test", "score", "validate"), "mq.evaluate(model, data)"),
    "compile": "mq.accelerate(model)",
}
OF_MODEL: Mapping[str, str] = {
    **dict.fromkeys(("fit", "train_model", "learn"), _FIT),
    **dict.fromkeys(("predict", "infer", "predict_proba"), "mq.predict(model, structures)"),
    **dict.fromkeys(("evaluate", "score", "test", "validate"), "mq.evaluate(model, data)"),
    **dict.fromkeys(
        ("save", "save_model", "save_pretrained", "to_file"), "mq.save(model, 'model.safetensors')"
    ),
    **dict.fromkeys(("load", "from_pretrained", "load_model"), "mq.load('model.safetensors')"),
    **dict.fromkeys(("calculator", "get_calculator", "calc", "as_calculator"), "mq.Calculator(model)"),
    **dict.fromkeys(("relax", "optimize"), "mq.relax(atoms, model)"),
    **dict.fromkeys(("md", "simulate"), "mq.md(atoms, model, time=10)"),
    **dict.fromkeys(("summary", "info"), "print(model)"),
    "audit": "mq.audit(model, data)",
}
OF_DATA: Mapping[str, str] = {
    **dict.fromkeys(("train_test_split", "random_split"), _SPLIT),
    **dict.fromkeys(("targets", "labels", "y", "properties"), 'data.values("NAME"), one of data.quantities'),
    **dict.fromkeys(("columns", "metadata", "df"), "data.info"),
    **dict.fromkeys(("positions", "pos", "z", "numbers", "atoms"), "data[0].pos, data[0].z, …"),
    **dict.fromkeys(("shape", "size"), "len(data)"),
    **dict.fromkeys(("head", "describe", "info_table"), "data.summary()"),
    **dict.fromkeys(("to_atoms", "to_ase"), "[mq.to_atoms(graph) for graph in data]"),
}
OF_PLOTTING: Mapping[str, str] = {
    **dict.fromkeys(
        ("errors", "error", "scatter", "predictions", "plot", "confusion", "parity_plot"), _PARITY
    ),
    **dict.fromkeys(
        ("loss", "losses", "history", "training", "curves"), "plotting.learning_curve(result.history)"
    ),
    **dict.fromkeys(("symmetry", "equivariance"), "plotting.audit(report)"),
    **dict.fromkeys(
        ("rdf", "msd", "vdos", "phonons", "eos", "elastic", "vibrations", "bands"),
        "plotting.analysis(result)",
    ),
    **dict.fromkeys(("uncertainty", "std"), "plotting.calibration(…)"),
    **dict.fromkeys(("atoms", "structure", "view"), "plotting.molecule(atoms)"),
}


def no_attribute(owner: str, name: str, known: Iterable[str], ways: Mapping[str, str]) -> AttributeError:
    """The error about an attribute that is not there: what to write, or the most similar name.

    Parameters
    ----------
    owner : str
        What does not have it, as Python says it: "module 'molequi'".
    name : str
        The attribute.
    known : iterable of str
        Public names that it has.
    ways : mapping of str to str
        What to write for names that other packages use.

    Returns
    -------
    AttributeError
        To be raised, so that ``hasattr`` and ``copy`` work.

    Examples
    --------
    >>> print(no_attribute("module 'molequi'", "Painn", ["PaiNN"], OF_PACKAGE))
    module 'molequi' has no attribute 'Painn'; did you mean 'PaiNN'?
    >>> print(no_attribute("'Model' object", "fit", [], OF_MODEL))
    'Model' object has no attribute 'fit'; write mq.fit(model, train, valid, epochs=…)
    """
    said = f"{owner} has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(said)
    if name in ways:
        return AttributeError(f"{said}; write {ways[name]}")
    near = did_you_mean(name, [one for one in known if not one.startswith("_")])
    return AttributeError(said + (near if near.startswith("; did") else ""))


def attribute_again(owner: object, name: str, ways: Mapping[str, str]) -> Any:
    """What ``__getattr__`` returns, which is called for what is not there and for a property that fails.

    Parameters
    ----------
    owner : object
        The object.
    name : str
        The attribute.
    ways : mapping of str to str
        As in `no_attribute`.

    Raises
    ------
    AttributeError
        That of the property itself, which Python has dropped; or that of `no_attribute`.

    Examples
    --------
    >>> attribute_again(1, "bit_lenght", {})
    Traceback (most recent call last):
    AttributeError: 'int' object has no attribute 'bit_lenght'; did you mean 'bit_length'?
    """
    if hasattr(type(owner), name):
        return object.__getattribute__(owner, name)
    raise no_attribute(f"{type(owner).__name__!r} object", name, dir(type(owner)), ways) from None
