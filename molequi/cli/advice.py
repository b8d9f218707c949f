"""What to type in place of flags that a command does not have, and one line that each command takes."""

from collections.abc import Mapping

_UNCERTAIN = (
    "an ensemble gives standard deviations, in the columns NAME_std: molequi train FILE --members 3; then "
    "--interval 0.9 adds limits"
)
_IN_FILE = "energy, forces and stress are learnt if the file has them; under another name: --keys {0}=NAME"
_TRAINED_AS = "the options of the model are in its file; they are chosen in the training"
# By command and flag; {0} is the name of the flag.
_ADVICE: Mapping[tuple[str, ...], Mapping[tuple[str, ...], str]] = {
    ("predict", "evaluate"): {
        (
            "uncertainty",
            "uncertainties",
            "std",
            "error",
            "errors",
            "error_bars",
            "with_uncertainty",
        ): _UNCERTAIN,
        ("members", "ensemble"): _UNCERTAIN,
        ("target", "targets", "cutoff", "elements", "r_max"): _TRAINED_AS,
    },
    ("screen",): {
        ("restart", "overwrite", "force"): "write --resume restart, which begins anew",
        ("resume_from", "continue", "skip_done"): "the same command goes on with what is missing",
        ("top", "top_k", "topk", "n_best"): "write --best '100 smallest NAME', or largest",
        ("filter", "where", "threshold", "cutoff_value"): "write --keep 'NAME < 3'",
        ("jobs", "n_jobs", "nproc", "cpus", "num_workers", "n_workers", "parallel"): "write --processes 4",
        ("chunk", "chunk_size", "block_size", "chunksize"): "write --block 1000, the inputs in a block",
        ("cluster", "address", "ray_address"): "write --ray auto on a machine of the cluster",
        ("skip",): "inputs that cannot be used have a row with the reason; nothing is to be said",
        ("output", "outdir", "out_dir", "folder"): "write --out FOLDER",
    },
    ("features",): {
        ("average", "pooling", "reduce", "per_structure", "global"): "write --pool mean, or sum",
        ("per_atom", "atomic"): "a row for each atom is the default, without --pool",
        ("invariants_only", "invariant", "scalars"): "write --irreps 0e, or --out with .csv",
        ("num_layers", "layers"): "write --layer NAME; a wrong name lists the layers of the model",
        ("restart", "resume"): "the same command goes on with what is missing",
        ("output",): "write --out FILE.npz",
    },
    ("merge",): {
        ("output", "o"): "write --out FILE.safetensors",
        ("coefficients", "alpha", "ratio"): "write --weights 0.7 0.3, one for each model",
        ("test", "valid", "validation"): "write --data FILE, on which all models are compared",
    },
    ("prepare",): {
        ("overwrite", "force", "replace"): "write --restart, which replaces the store",
        ("resume", "continue"): "the same command goes on with what is missing; --append adds structures",
        ("jobs", "n_jobs", "nproc", "cpus", "num_workers", "n_workers", "parallel"): "write --processes 4",
        ("chunk", "chunk_size", "block_size", "chunksize"): "write --block 1000, the structures in a block",
    },
    ("train",): {
        ("forces", "energy", "energies", "force"): _IN_FILE,
        ("smiles", "smiles_col"): "the column with the SMILES is found, or named: --column NAME",
        ("property", "label", "labels", "y"): "write --target NAME",
        ("ensemble", "uncertainty"): "write --members 3",
    },
    ("analyze",): {
        ("rdf", "msd", "vdos", "bonds", "angles"): "write --what {0}",
        ("diffusion",): "write --what msd",
        ("analysis", "type", "analyze"): "write --what rdf",
    },
}
EXAMPLES = {
    "train": "molequi train mine.csv --target logS",
    "prepare": "molequi prepare 'data/*.xyz' --out prepared",
    "lint": "molequi lint mine.xyz",
    "predict": "molequi predict runs/mine new.csv predicted.csv",
    "evaluate": "molequi evaluate runs/mine test.xyz",
    "screen": "molequi screen runs/mine 'library/*.smi' --out screened",
    "features": "molequi features runs/mine structures.xyz --out features.npz",
    "sample": "molequi sample runs/molecules 100 --out molecules.sdf",
    "merge": "molequi merge runs/a runs/b --out merged.safetensors --data test.xyz",
    "info": "molequi info runs/mine",
    "laplace": "molequi laplace runs/mine train.xyz valid.xyz --out sure.safetensors",
    "select": "molequi select sure.safetensors runs/nvt/trajectory.xyz --n 50 --out picks.xyz",
    "md": "molequi md runs/mine start.xyz --time 10",
    "relax": "molequi relax runs/mine start.xyz",
    "analyze": "molequi analyze runs/nvt --what rdf",
    "eos": "molequi eos runs/mine crystal.xyz",
    "elastic": "molequi elastic runs/mine crystal.xyz",
    "vibrations": "molequi vibrations runs/mine molecule.xyz",
    "phonons": "molequi phonons runs/mine crystal.xyz --supercell 3 3 3",
    "audit": "molequi audit runs/mine test.xyz",
    "curve": "molequi curve mine.csv --target logS",
    "compare": "molequi compare mine.xyz --minutes 5",
    "report": "molequi report runs/mine",
    "options": "molequi options NequIP",
}


def advice(command: str, name: str) -> str:
    """What to type in place of a flag that a command does not have; empty if nothing is known.

    Parameters
    ----------
    command : str
        Name of the command.
    name : str
        The flag, without dashes and with underscores.

    Examples
    --------
    >>> advice("analyze", "rdf"), advice("md", "rdf")
    ('write --what rdf', '')
    """
    for commands, flags in _ADVICE.items():
        for names, text in flags.items():
            if command in commands and name.lower() in names:
                return text.format("forces" if name.lower() == "force" else name.lower())
    return ""
