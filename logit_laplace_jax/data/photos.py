"""The embedded photographs: those in the wheels of scikit-image and Matplotlib, as a TFDS builder.

Nothing is downloaded. The files are found beside the installed packages, checked against the
SHA-256 sums below, and written once to array_record, which needs no TensorFlow.

The split is by photograph: no scene is in both. The two halves of the stereo pair are two views of
one scene, so both are for training. Left out are scikit-image's drawings, scans of text,
silhouettes, phantoms and the blurred clock, which are no natural photographs, and its grey pictures
but one: with more of them the few colours of so small a set would be learnt late or not at all.

Licenses and sources are what scikit-image 0.26 states in `skimage/data/_fetchers.py`; where it
states none, the entry says so.
"""

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from logit_laplace_jax.data.errors import DataError, missing_package, one_line

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise missing_package("tensorflow-datasets") from error


class Photograph(NamedTuple):
    """One photograph: its file, license, source, split, and the package that brings it."""

    file: str
    license: str
    source: str
    split: str = "train"
    package: str = "scikit-image"

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.file).stem


_CC0 = "CC0 1.0"
_PUBLIC = "public domain"
_NO_RESTRICTION = "no known copyright restrictions"
_MIDDLEBURY = "no license stated; Middlebury 2014 stereo benchmark, to be cited (GCPR 2014)"
_STEREO_SOURCE = (
    "N. Nesic, P. Westling, X. Wang, Y. Kitajima, G. Krathwohl, D. Scharstein, Middlebury College, "
    "http://vision.middlebury.edu/stereo/data/scenes2014/, reduced 4 times by scikit-image"
)

PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("coffee.png", _CC0, "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    Photograph("motorcycle_left.png", _MIDDLEBURY, _STEREO_SOURCE),
    Photograph("motorcycle_right.png", _MIDDLEBURY, _STEREO_SOURCE),
    # The Flickr page says CC BY-NC 2.0; scikit-image relies on SpaceX's later release of its
    # photographs (https://github.com/scikit-image/scikit-image/issues/5095).
    Photograph(
        "rocket.jpg", _PUBLIC, "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/"
    ),
    Photograph(
        "retina.jpg",
        _CC0,
        "Mikael Häggström, Wikimedia Commons, Fundus_photograph_of_normal_left_eye.jpg",
    ),
    Photograph("hubble_deep_field.jpg", _PUBLIC, "NASA, HubbleSite release 2012/37"),
    Photograph("ihc.png", _NO_RESTRICTION, "Center for Microscopy and Molecular Imaging (CMMI)"),
    Photograph("camera.png", _CC0, "Lav Varshney"),
    Photograph(
        "grace_hopper.jpg",
        _PUBLIC,
        "James S. Davis, United States Navy, Wikimedia Commons, Grace_Hopper.jpg, as matplotlib's "
        "sample data",
        package="matplotlib",
    ),
    Photograph(
        "astronaut.png",
        _PUBLIC,
        "NASA, Great Images database, https://flic.kr/p/r9qvLn",
        split="validation",
    ),
    Photograph("chelsea.png", _CC0, "Stefan van der Walt", split="validation"),
)
"""9 for training (of these grey: camera), 2 held out."""

SHA256 = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "grace_hopper.jpg": "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
"""The files that this version knows."""

_FOLDERS = {
    "scikit-image": ("skimage", "data"),
    "matplotlib": ("matplotlib", "mpl-data", "sample_data"),
}
"""Where a package's wheel holds its images."""


def image_folder(package: str) -> Path:
    """The folder of an installed package that holds its images; nothing of it is imported.

    Raises:
        DataError: the package is not installed.
    """
    module, *parts = _FOLDERS[package]
    # find_spec of the top-level name reads no module, so a slow or broken package costs nothing.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing_package(package)
    return Path(next(iter(spec.submodule_search_locations)), *parts)


def read_photograph(photograph: Photograph) -> bytes:
    """The bytes of one photograph's file, as its package brings it.

    Raises:
        DataError: the file is missing, or is another one than the table above describes.
    """
    path = image_folder(photograph.package) / photograph.file
    advice = f"pip install --force-reinstall {photograph.package}  in the versions of this project"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the photograph {path} cannot be read ({error.strerror}): run  {advice}"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256[photograph.file]:
        raise DataError(f"{path} is not the photograph that this version knows: run  {advice}")
    return content


# Not registered by name: a test runner that imports this file twice would be refused.
class EmbeddedPhotos(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg, unused-ignore]
):
    """TFDS builder of the embedded photographs: splits `train` and `validation`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "9 photographs for training, 2 held out."}  # noqa: RUF012

    # TFDS looks beside the builder's code for checksums of downloads, by way of the package
    # importlib_resources, which it imports but does not require (4.9.10). There are no downloads.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The photographs that scikit-image and Matplotlib bring in their wheels.",
            features=tfds.features.FeaturesDict(
                {
                    # Given bytes, the feature stores them as they are: grey files stay grey,
                    # whatever channels the feature declares, and no TensorFlow is needed. Given
                    # an array it would encode it with TensorFlow.
                    "image": tfds.features.Image(),
                    "name": tfds.features.Text(),
                    "license": tfds.features.Text(),
                    "source": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for photograph in PHOTOGRAPHS:
            if photograph.split == split:
                example = {
                    "image": read_photograph(photograph),
                    "name": photograph.name,
                    "license": photograph.license,
                    "source": photograph.source,
                }
                yield photograph.name, example


def prepare(data_dir: str | None = None) -> EmbeddedPhotos:
    """The builder of the photographs, prepared under `data_dir` unless it is already.

    Any number of processes may do so at once: TFDS writes to a folder of its own and renames it,
    so one wins and the others read what it wrote.

    Args:
        data_dir: where TFDS keeps its data sets; None is TFDS's own default
            (`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`).

    Raises:
        DataError: `data_dir` cannot be written, or a photograph is missing or changed.
    """
    builder = _builder(data_dir)
    if builder.data_path.exists():
        return builder
    try:
        # TFDS announces itself on stdout and draws progress bars on stderr. There is nothing to
        # wait for here, and scripts write their own results there.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:
        # The rename fails where another process was faster; its result is as good as ours.
        if not builder.data_path.exists():
            raise DataError(
                f"the photographs cannot be written to {builder.data_path} ({one_line(error)}): "
                "name a folder that can be written, by the data_dir option or TFDS_DATA_DIR"
            ) from error
    return _builder(data_dir)


def _builder(data_dir: str | None) -> EmbeddedPhotos:
    try:
        return EmbeddedPhotos(data_dir=data_dir, file_format="array_record")
    except Exception as error:
        # A broken dataset_info.json under data_dir fails in many ways inside TFDS.
        raise DataError(
            f"the prepared photographs under {data_dir or 'the default TFDS folder'} cannot be "
            f"read ({one_line(error)}): delete their folder embedded_photos and start again"
        ) from error
