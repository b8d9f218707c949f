"""Generation of molecules, conformers and relaxed structures by equivariant flow matching."""

from molequi.generative.audit import FlowAudit, audit_flow
from molequi.generative.conformers import ConformerQuality, ConformerScores, conformer_quality
from molequi.generative.flow import Flow
from molequi.generative.guidance import Guidance
from molequi.generative.matching import FlowMatching
from molequi.generative.paths import paths, read_paths
from molequi.generative.quality import Quality, quality_of
from molequi.generative.samples import Samples, read_samples
from molequi.generative.sampling import sample
from molequi.generative.strain import Strain, strain_of
from molequi.generative.unrelaxed import unrelaxed

__all__ = [
    "ConformerQuality",
    "ConformerScores",
    "Flow",
    "FlowAudit",
    "FlowMatching",
    "Guidance",
    "Quality",
    "Samples",
    "Strain",
    "audit_flow",
    "conformer_quality",
    "paths",
    "quality_of",
    "read_paths",
    "read_samples",
    "sample",
    "strain_of",
    "unrelaxed",
]
