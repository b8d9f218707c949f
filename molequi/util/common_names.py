"""Names that other packages use for the options of molequi, in one table.

The table is used only for a name that a function does not have, so it cannot shadow an option.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Way:
    """How an option of another package is written here.

    Parameters
    ----------
    argument : str
        The argument here; ``"validation.patience"`` is the entry "patience" of the argument "validation".
    value : object, optional
        What to write as its value; by default what the user gave.
    factor : float
        What a number of the user is multiplied by.
    note : str
        The unit or the meaning, where it differs.
    form : str
        The value as Python code, ``{}`` being what the user gave.
    """

    argument: str
    value: Any = None
    factor: float = 1.0
    note: str = ""
    form: str = "{}"

    @property
    def head(self) -> str:
        """The argument of the function."""
        return self.argument.partition(".")[0]

    @property
    def last(self) -> str:
        """The last part of the name, which a flag of the command line has."""
        return self.argument.rpartition(".")[2]

    def flag(self, known: Collection[str]) -> str:
        """The flag of the command line that stands for it; empty if there is none.

        Parameters
        ----------
        known : collection of str
            Names of flags, with underscores.

        Examples
        --------
        >>> Way("barostat.time").flag(["time", "barostat_time"])
        'barostat_time'
        """
        names = (self.argument, f"{self.head}_{self.last}", self.last, self.head)
        return next((name for name in names if name in known), "")

    def given(self, value: Any) -> Any:
        """The value to write for what the user gave.

        Parameters
        ----------
        value : object
            What the user gave.
        """
        if self.value is not None:
            return self.value
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value * self.factor if number and self.factor != 1 else value

    def python(self, value: str) -> str:
        """The argument as Python code.

        Parameters
        ----------
        value : str
            The value as code.

        Examples
        --------
        >>> Way("validation.patience").python("20")
        'validation={"patience": 20}'
        """
        value = self.form.format(value)
        _, dot, field = self.argument.partition(".")
        return f'{self.head}={{"{field}": {value}}}' if dot else f"{self.head}={value}"


def _same(argument: str, *names: str, note: str = "") -> dict[str, tuple[Way, ...]]:
    """Names that mean the same as an argument."""
    return dict.fromkeys(names, (Way(argument, note=note),))


def _split(part: str) -> tuple[Way, ...]:
    """The size of a part of the data."""
    return Way(f"split.{part}"), Way("sizes", value={"train": 0.8, "valid": 0.1, "test": 0.1})


_FS = "in fs, without ase.units.fs"
_EARLY = "the number of validations without a lower loss"
_IRREPS = "128x0e + 128x1o is channels=128 with l_hidden=1 in GauntACE and MACE, with l_max=1 in NequIP"
_DEGREES = "the highest degree; 1 for 0e + 1o"

_BATCH = (Way("batch_size"), Way("batch_edges", value=20000, note="the largest number of edges in a batch"))

COMMON_NAMES: dict[str, tuple[Way, ...]] = {
    # Backbones
    **_same(
        "cutoff", "r_max", "rmax", "r_cut", "rcut", "rc", "cutoff_radius", "radius", "max_radius", note="in Å"
    ),
    **_same("cutoff", "cutoff_distance", "r_cutoff", "radial_cutoff", "local_cutoff", note="in Å"),
    **_same(
        "channels", "hidden_channels", "num_features", "n_features", "hidden_dim", "hidden_size", "width"
    ),
    **_same(
        "channels", "num_channels", "n_channels", "features", "n_atom_basis", "hidden_nf", "embed_dim", "dim"
    ),
    **_same("layers", "num_layers", "n_layers", "num_interactions", "n_interactions", "num_blocks", "depth"),
    **_same("layers", "num_convs", "num_conv_layers", "interactions"),
    "hidden_irreps": (Way("channels", value=128, note=_IRREPS),),
    "feature_irreps_hidden": (Way("channels", value=128, note=_IRREPS),),
    **_same("l_max", "lmax", "max_ell", "max_l", "ell_max", "l", note=_DEGREES),
    **_same("l_hidden", "max_l_hidden", note=_DEGREES),
    **_same(
        "radial", "num_radial_basis", "num_radial", "num_basis", "num_bessels", "n_rbf", "num_rbf", "n_radial"
    ),
    **_same("correlation", "body_order", "correlation_order", "nu_max"),
    **_same("heads", "num_heads", "n_heads", "attention_heads"),
    **_same("k", "max_num_neighbors", "num_neighbors", "k_neighbors", "n_neighbors", "knn"),
    **_same(
        "elements", "atomic_numbers", "species", "chemical_symbols", "type_names", "atom_types", "z_table"
    ),
    # Training
    **_same("lr", "learning_rate", "base_lr", "init_lr", "lr_init", "initial_lr", "max_lr"),
    **_same("epochs", "max_epochs", "n_epochs", "num_epochs", "max_num_epochs", "nepochs", "n_epoch"),
    **_same("max_minutes", "max_time", "time_limit", note="in minutes"),
    **dict.fromkeys(("batch_size", "batch", "batchsize", "train_batch_size", "bs"), _BATCH),
    **_same("optimizer", "optim", "optimizer_name", "opt"),
    **_same("schedule", "lr_scheduler", "scheduler", "lr_scheduler_name", "lr_schedule"),
    **_same("schedule.warmup", "warmup_epochs", "warm_up", "lr_warmup", note="in epochs"),
    **_same("optimizer.weight_decay", "l2_reg", "wd"),
    **_same(
        "optimizer.clip", "gradient_clip_val", "grad_clip", "clip_grad", "max_grad_norm", "gradient_clip"
    ),
    **_same("optimizer.ema", "ema_decay"),
    "early_stopping": (Way("validation.patience", value=20, note=_EARLY),),
    **_same(
        "validation.patience", "patience", "early_stopping_patience", "early_stop", "n_patience", note=_EARLY
    ),
    **_same("validation.every", "eval_interval", "val_every", "check_val_every_n_epoch", note="in epochs"),
    **_same(
        "loss.energy", "energy_weight", "energies_weight", "w_energy", "lambda_energy", "energy_loss_weight"
    ),
    **_same("loss.forces", "forces_weight", "force_weight", "w_forces", "lambda_forces", "force_loss_weight"),
    **_same("loss.stress", "stress_weight", "w_stress", "virial_weight", "virials_weight"),
    **_same("loss", "loss_fn", "criterion", "loss_function", "loss_weights", "loss_coeffs", "loss_kind"),
    **_same(
        "normalization.reference_energies", "E0s", "atomic_energies", "isolated_atoms", "atomrefs", "atomref"
    ),
    **_same("compute.workers", "num_workers", "n_workers", "dataloader_workers"),
    **_same("compute.precision", "default_dtype", "model_dtype"),
    **_same("compute.accelerate", "compile", "torch_compile", "enable_cueq", "jit"),
    **_same("compute.devices", "num_gpus", "n_gpus", "ngpus", "world_size"),
    **_same("compute.num_nodes", "nnodes", "number_of_nodes"),
    **_same("compute.strategy", "distributed_backend"),
    **_same("seed", "random_seed", "random_state", "rng_seed"),
    **_same(
        "valid", "validation_data", "val", "val_data", "valid_data", "val_loader", "valid_file", "val_set"
    ),
    **_same("train", "train_data", "training_data", "train_loader", "train_file", "train_set"),
    **_same("test", "test_data", "test_loader", "test_file", "test_set"),
    **_same("logging.loggers", "logger", "loggers", "wandb", "tensorboard_dir"),
    **_same("logging.progress", "verbose", "progress_bar", "enable_progress_bar"),
    # Everywhere
    **_same("out", "output", "output_dir", "out_dir", "outdir", "work_dir", "workdir", "save_dir", "log_dir"),
    **_same("out", "results_dir", "run_dir", "save_path", "output_file", "filename", "trajectory", "logfile"),
    "gpu": (Way("device", value="cuda"),),
    "gpus": (Way("device", value="cuda"),),
    "cuda": (Way("device", value="cuda"),),
    "use_gpu": (Way("device", value="cuda"),),
    "use_cuda": (Way("device", value="cuda"),),
    "accelerator": (Way("device", value="auto"),),
    "restart": (Way("resume", value="restart"),),
    "overwrite": (Way("resume", value="restart"),),
    "resume_from_checkpoint": (Way("resume", value="auto", note="a training in the folder `out` goes on"),),
    "dtype": (Way("compute.precision"), Way("precision")),
    "precision": (Way("dtype"), Way("compute.precision")),
    # Data
    **_same(
        "path", "file", "filepath", "file_path", "filenames", "data_path", "dataset", "csv", "xyz", "root"
    ),
    **_same("column", "smiles_column", "smiles_col", "smiles_columns", note="the column of the SMILES"),
    **dict.fromkeys(
        ("target", "targets", "target_column", "label", "labels", "property", "y"),
        (
            Way(
                "quantities",
                form="[mq.Quantity({})]",
                note="what is read beside the structures; unit= if any",
            ),
        ),
    ),
    **_same("keys.energy", "energy_key", note="the name in the file"),
    **_same("keys.forces", "forces_key", "force_key", note="the name in the file"),
    **_same("keys.stress", "stress_key", "virials_key", note="the name in the file"),
    **_same("keys.dipole", "dipole_key", note="the name in the file"),
    **dict.fromkeys(("train_size", "train_fraction", "n_train", "num_train"), _split("train")),
    **dict.fromkeys(("valid_fraction", "val_fraction", "valid_size", "n_valid", "n_val"), _split("valid")),
    **dict.fromkeys(("test_size", "test_fraction", "n_test"), _split("test")),
    **_same("conformers", "n_conformers", "num_conformers", "num_confs", "n_confs"),
    "eval_batch_size": _BATCH[1:],
    # Simulation
    **_same("timestep", "dt", "time_step", "delta_t", "timestep_fs", "dt_fs", note=_FS),
    **_same("temperature", "temperature_K", "temp", "T", "temperature_k", "tK", note="in K"),
    **_same("steps", "n_steps", "nsteps", "num_steps", "md_steps", "max_steps", "number_of_steps"),
    "time_ps": (Way("time", note="in ps"),),
    "time_fs": (Way("time", factor=1e-3, note="in ps"),),
    "time_ns": (Way("time", factor=1e3, note="in ps"),),
    "pressure_GPa": (Way("barostat.pressure", factor=1e4, note="in bar; 1 GPa is 10000 bar"),),
    "pressure_bar": (Way("barostat.pressure", note="in bar"),),
    "pressure_au": (Way("barostat.pressure", value=1.0, note="in bar; 1 eV/Å^3 is 1602177 bar"),),
    "externalstress": (Way("barostat.pressure", value=1.0, note="in bar; positive compresses"),),
    **_same("barostat.time", "taup", "pfactor", "ptime", note="in fs"),
    **_same("thermostat.friction", "gamma", "damping", "friction_coefficient", note="in 1/fs"),
    **_same("thermostat.time", "taut", "ttime", "tdamp", "tau_t", "thermostat_tau", note="in fs"),
    **_same(
        "every",
        "loginterval",
        "log_interval",
        "traj_interval",
        "dump_interval",
        "save_every",
        note="in steps",
    ),
    **_same("calculator", "calc", "potential"),
    **_same("fmax", "force_tolerance", "max_force_threshold", "ftol", "f_max", "force_tol", note="in eV/Å"),
    **_same("cell", "relax_cell", "relax_lattice", "cell_filter", "cell_opt", "optimize_cell"),
    **_same("ensemble", "thermostat_type", "md_ensemble", "integrator"),
}

# Where an option belongs that is given to something else: its name, and what to write.
OWNERS: dict[str, str] = {
    **dict.fromkeys(
        ("cutoff", "channels", "layers", "l_max", "radial", "elements"),
        "the backbone: mq.NequIP({name}={value})",
    ),
    **dict.fromkeys(("lr", "epochs", "batch_size", "loss", "optimizer"), "fit: mq.fit(…, {name}={value})"),
    "fmax": "relax: mq.relax(…, fmax={value}), molequi relax … --fmax {value}",
    "temperature": "md: mq.md(…, temperature={value})",
    "timestep": "md: mq.md(…, timestep={value})",
}

# What other packages call a value, and the value here, by the name of the option.
COMMON_VALUES: dict[str, dict[str, str]] = {
    "ensemble": {
        "nvt_langevin": "langevin",
        "verlet": "nve",
        "velocityverlet": "nve",
        "velocity_verlet": "nve",
        **dict.fromkeys(("nvt_berendsen", "berendsen", "andersen", "nvt_andersen", "canonical"), "nvt"),
        **dict.fromkeys(("nose_hoover", "nosehoover", "nvt_nose_hoover", "nosehooverchain", "nhc"), "nvt"),
        **dict.fromkeys(("nvt_bussi", "bussi", "csvr", "v_rescale", "svr"), "nvt"),
        **dict.fromkeys(
            ("npt_berendsen", "npt_parrinello_rahman", "npt_mtk", "mtk", "nph", "isobaric"), "npt"
        ),
    },
    "thermostat": {
        **dict.fromkeys(("csvr", "v_rescale", "svr", "nvt_bussi", "berendsen"), "bussi"),
        **dict.fromkeys(("nhc", "nosehoover", "nosehooverchain", "nvt_nose_hoover"), "nose-hoover"),
    },
    "optimizer": {
        **dict.fromkeys(("sgd", "amsgrad", "lbfgs"), "adam"),
        **dict.fromkeys(("shampoo", "muon"), "soap"),
        "adam_w": "adamw",
    },
    "schedule": {
        "reducelronplateau": "plateau",
        "reduce_lr_on_plateau": "plateau",
        "cosineannealinglr": "cosine",
        "cosineannealing": "cosine",
        "cosine_annealing": "cosine",
        "steplr": "plateau",
        "exponentiallr": "cosine",
        "none": "constant",
    },
    "kind": {"l1": "mae", "mean_absolute_error": "mae", "rmse": "mse", "smooth_l1": "huber"},
    "dtype": {
        "double": "float64",
        "float": "float32",
        "single": "float32",
        "fp32": "float32",
        "fp64": "float64",
    },
    "device": dict.fromkeys(("gpu", "gpus", "cuda0", "nvidia"), "cuda"),
    "optimize": {"mmff94": "mmff", "mmff94s": "mmff"},
}
# What to write beside such a value.
VALUE_NOTES = {
    **dict.fromkeys(("nvt_bussi", "bussi", "csvr", "v_rescale", "svr"), "thermostat='bussi'"),
    **dict.fromkeys(("nose_hoover", "nosehoover", "nvt_nose_hoover", "nhc"), "thermostat='nose-hoover'"),
}
COMMON_VALUES["loss"] = COMMON_VALUES["kind"]
COMMON_VALUES["precision"] = COMMON_VALUES["dtype"]


def common_way(name: str, known: Collection[str], *, flags: bool = False) -> Way | None:
    """How an option of another package is written here; None if the table does not know it.

    Parameters
    ----------
    name : str
        A name that the function does not have.
    known : collection of str
        The names that it has.
    flags : bool
        Whether these are the names of flags.

    Examples
    --------
    >>> common_way("r_max", ["elements", "cutoff"]).argument
    'cutoff'
    >>> common_way("r_max", ["epochs", "lr"]) is None
    True
    """
    ways = COMMON_NAMES.get(name) or COMMON_NAMES.get(name.lower()) or ()
    for way in ways:
        if way.flag(known) if flags else way.head in known:
            return way
    return None


def owner(name: str, value: str) -> str:
    """Where an option belongs, in words; an empty string if the table does not know it.

    Parameters
    ----------
    name : str
        A name that a function does not have.
    value : str
        Its value as code.

    Examples
    --------
    >>> owner("r_max", "4.0")
    'an option of the backbone: mq.NequIP(cutoff=4.0)'
    """
    ways = COMMON_NAMES.get(name, ())
    for argument in (name, *(way.argument for way in ways)):
        if argument in OWNERS:
            return f"an option of {OWNERS[argument].format(name=argument, value=value)}"
    return ""


def common_value(option: str, value: object, allowed: Collection[object]) -> str:
    """The value that stands here for one of another package; an empty string if the table does not know it.

    Parameters
    ----------
    option : str
        Name of the option.
    value : object
        A value that it does not take.
    allowed : collection
        The values that it takes.

    Examples
    --------
    >>> common_value("ensemble", "NPT_Berendsen", ["nve", "nvt", "npt"])
    'npt'
    """
    if not isinstance(value, str):
        return ""
    plain = _plain(value)
    for one in allowed:
        if isinstance(one, str) and one.lower().replace("-", "_") == plain:
            return one
    found = COMMON_VALUES.get(option, {}).get(plain, "")
    return found if found in allowed else ""


def value_note(option: str, value: object) -> str:
    """What to write beside the value that `common_value` names; empty for nothing.

    Parameters
    ----------
    option : str
        Name of the option.
    value : object
        What the user gave.

    Examples
    --------
    >>> value_note("ensemble", "bussi")
    "thermostat='bussi'"
    """
    return VALUE_NOTES.get(_plain(value), "") if option == "ensemble" and isinstance(value, str) else ""


def _plain(value: str) -> str:
    return value.strip().lower().replace("-", "_").replace(" ", "_")
