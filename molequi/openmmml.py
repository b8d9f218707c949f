"""The potential ``molequi`` of openmmml: ``openmmml.MLPotential("molequi", modelPath="model.safetensors")``.

openmmml imports this module each time it is imported itself, through the entry point ``molequi`` of the group
``openmmml.potentials``. So nothing heavy is imported here; PyTorch comes with the first potential.
"""

from typing import Any


class PotentialFactory:
    """What openmmml asks for potentials.

    It has the method of `openmmml.mlpotential.MLPotentialImplFactory` and does not derive from it: openmmml
    imports this module while it is imported, so that neither could be imported first.
    """

    def createImpl(self, name: str, **args: Any) -> Any:
        """A potential of a model.

        Parameters
        ----------
        name : str
            The name that openmmml was asked for.
        **args
            ``modelPath``, see `molequi.engines.openmmml.Potential`.

        Returns
        -------
        openmmml.mlpotential.MLPotentialImpl

        Raises
        ------
        ConfigError, UnknownKeywordError, CheckpointError
            As `molequi.engines.openmmml.Potential` does.
        """
        from molequi.engines.openmmml import Potential

        return Potential(**args)
