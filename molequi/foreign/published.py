"""Published weights that are known by their digests, and the packages whose wheels have them."""

from collections.abc import Mapping
from dataclasses import dataclass

_SEVENN = "sevenn/pretrained_potentials"
_MPTRJ = "PBE and PBE+U, as in the Materials Project"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights.

    Parameters
    ----------
    name : str
        Name for `foundation`.
    package : str
        The package on the Python Package Index whose wheel has the file.
    file : str
        Path in the wheel.
    sha256 : str
        Digest of the file.
    licence : str
        Licence of the package.
    training : str
        What it was trained on.
    levels : tuple of str
        Levels of theory of which one is chosen, if the file has several.
    """

    name: str
    package: str
    file: str
    sha256: str
    licence: str
    training: str
    levels: tuple[str, ...] = ()


_ALL = (
    Published(
        name="7net-0",
        package="sevenn",
        file=f"{_SEVENN}/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        sha256="7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        licence="MIT",
        training=f"MPtrj: {_MPTRJ}",
    ),
    Published(
        name="7net-0-22may2024",
        package="sevenn",
        file=f"{_SEVENN}/SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        sha256="5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1",
        licence="MIT",
        training=f"MPtrj: {_MPTRJ}",
    ),
    Published(
        name="7net-l3i5",
        package="sevenn",
        file=f"{_SEVENN}/SevenNet_l3i5/checkpoint_l3i5.pth",
        sha256="a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        licence="MIT",
        training=f"MPtrj: {_MPTRJ}",
    ),
    Published(
        name="7net-mf-0",
        package="sevenn",
        file=f"{_SEVENN}/SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
        sha256="81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",
        licence="MIT",
        training="PBE and r2SCAN, of the Materials Project",
        levels=("PBE", "R2SCAN"),
    ),
    Published(
        name="so3lr",
        package="so3krates-torch",
        file="so3krates_torch/pretrained/so3lr/so3lr.model",
        sha256="b5145564911ff983ed076ccb2bca5ce63454b74c9c8291092695463f1e6732be",
        licence="MIT",
        training="4 million neutral and charged molecules and complexes: PBE0 with many-body dispersion",
    ),
)

PUBLISHED: Mapping[str, Published] = {one.name: one for one in _ALL}
BY_DIGEST: Mapping[str, Published] = {one.sha256: one for one in _ALL}
