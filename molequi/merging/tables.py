"""The channels of a whole model, from the tables of its backbone and heads."""

from molequi.errors import ModelError
from molequi.merging.backbones import BACKBONE_TABLES, WITHOUT_TABLE
from molequi.merging.channels import Channels
from molequi.merging.heads import HEAD_TABLES
from molequi.model import Model


def channels_of(model: Model) -> Channels:
    """The spaces of a model of the package.

    Parameters
    ----------
    model : Model
        The model.

    Returns
    -------
    Channels

    Raises
    ------
    ModelError
        If the backbone, a head or a term has no table of channels, or has weights that its table does
        not describe.
    """
    found, backbone = Channels(model), model.backbone
    describe = BACKBONE_TABLES.get(type(backbone))
    if describe is None:
        name = type(backbone).__name__
        why = WITHOUT_TABLE.get(name, "molequi has no table of its channels")
        raise ModelError(
            f"{name}: {why}, so that models of different starts cannot be aligned; merge models of one "
            "start, or make an ensemble of them: mq.Ensemble([a, b])"
        )
    if "long_range" in model.energy_terms:
        raise ModelError(
            "long_range: molequi has no table of the channels of its networks, so that models of different "
            "starts cannot be aligned; merge models of one start"
        )
    features = describe(found, "backbone", backbone)
    for name, head in model.heads.named_children():
        kind = type(head)
        if kind not in HEAD_TABLES:
            raise ModelError(
                f"{kind.__name__}: molequi has no table of the channels of this head, so that models of "
                "different starts cannot be aligned; merge models of one start"
            )
        HEAD_TABLES[kind](found, f"heads.{name}", head, features)
    found.check()
    return found
