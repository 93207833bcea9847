import pytest

from statewise.bundles.manifest import Manifest, Variant
from statewise.errors import BundleError
from statewise_server.repository.variants import choose_variant
from tests.small_bundles import CONTENT


def manifest(*names: str) -> Manifest:
    variants = {}
    for name in names:
        device, precision = name.split("-")
        variants[name] = Variant.model_validate(
            {"device": device, "precision": precision, "step": f"{name}.onnx", "certificate": f"{name}.json"}
        )
    files = {file: "0" * 64 for name in names for file in (f"{name}.onnx", f"{name}.json")}
    return Manifest(name="m", version=1, files=files, **{**vars(CONTENT), "variants": variants})


@pytest.mark.parametrize(
    ("names", "devices", "chosen"),
    [
        (["cpu-int8", "cpu-float32"], ["cpu"], "cpu-float32"),
        (["cpu-int4", "cpu-int8"], ["cpu"], "cpu-int8"),
        (["cuda-float16", "cpu-int8"], ["cpu"], "cpu-int8"),
        (["cpu-float32", "cuda-float32", "cuda-float16"], ["cuda", "cpu"], "cuda-float16"),
        (["cpu-float32"], ["cuda", "cpu"], "cpu-float32"),
    ],
)
def test_the_best_variant_for_the_machine_is_chosen(names: list[str], devices: list[str], chosen: str) -> None:
    """The machine's best device comes first; on it, the precision that is exact (CPU) or fast (CUDA)."""
    assert choose_variant(manifest(*names), None, devices)[0] == chosen


def test_a_variant_that_is_asked_for_is_taken() -> None:
    """What the operator asks for wins over what would be preferred."""
    assert choose_variant(manifest("cpu-float32", "cpu-int8"), "cpu-int8")[0] == "cpu-int8"


def test_a_device_that_is_missing_is_explained() -> None:
    """What is asked for and cannot run says why, in the words of whoever looked."""
    with pytest.raises(BundleError, match="needs cuda, which is not available here: the NVIDIA driver sees no GPU"):
        choose_variant(manifest("cuda-float16"), "cuda-float16", ("cpu",), lambda _: "the NVIDIA driver sees no GPU")


@pytest.mark.parametrize(
    ("names", "requested", "reason"),
    [
        (["cpu-float32"], "cpu-int8", r"no variant 'cpu-int8' \(it has: cpu-float32\)"),
        (["cpu-float32", "cuda-float16"], "cuda-float16", "needs cuda"),
        (["cuda-float16"], None, r"no variant for this machine's devices, cpu \(it has: cuda-float16\)"),
    ],
)
def test_a_bundle_without_a_fitting_variant_is_refused(names: list[str], requested: str | None, reason: str) -> None:
    """A bundle that this machine cannot run is refused with what it has."""
    with pytest.raises(BundleError, match=reason):
        choose_variant(manifest(*names), requested)
