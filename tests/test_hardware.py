# SPDX-License-Identifier: Apache-2.0
"""The catalogue is complete, sourced and plausible; a row that is not is refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bsmodel import hardware
from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import DEFAULT_GPUS, SEARCH_PATH_VARIABLE, Gpu, Source
from bsmodel.hardware.gpu import _folded
from bsmodel.units import GiB, MiB

CATALOGUE = hardware.gpus_in(hardware.catalogue_folder())
IDS = [gpu.id for gpu in CATALOGUE]
PACKAGE = Path(hardware.__file__).parent
RATES = ("fp32_flops_per_s", "tf32_dense_flops_per_s", "fp16_dense_flops_per_s", "bf16_dense_flops_per_s", "fp8_dense_flops_per_s")

ROW = """\
id = "my-gpu-10gb"
name = "My GPU"
memory_bytes = 10_000_000_000
compute_capability = "8.6"

[[sources]]
figures = ["memory_bytes", "compute_capability"]
source = "nvidia-smi on my desk"
checked = 2026-11-01
kind = "reported"
"""


@pytest.fixture(autouse=True)
def _no_rows_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SEARCH_PATH_VARIABLE, raising=False)


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# -- the catalogue -------------------------------------------------------------------------------------------------------------------


def test_file_name_is_id_and_first_line_names_the_schema() -> None:
    for path in hardware.catalogue_folder().glob("*.toml"):
        if path.name not in ("runtime.toml", "workspaces.toml", "nccl.toml", "networks.toml"):
            assert Gpu.load(path).id == path.stem
            assert path.read_text(encoding="utf-8").startswith("#:schema gpu.schema.json\n")


def test_all_is_the_catalogue_by_memory() -> None:
    assert {gpu.id for gpu in Gpu.all()} == set(IDS)
    assert [gpu.memory_bytes for gpu in Gpu.all()] == sorted(gpu.memory_bytes for gpu in CATALOGUE)
    assert len(IDS) == len(set(IDS)) >= 29


def test_no_two_gpus_answer_to_one_name() -> None:
    """Folded as `named` folds them, names and aliases of different rows stay apart."""
    answers = Counter(answer for gpu in CATALOGUE for answer in {_folded(name) for name in (gpu.id, gpu.name, *gpu.aliases)})

    assert [answer for answer, count in answers.items() if count > 1] == []


def test_defaults() -> None:
    assert tuple(gpu.id for gpu in hardware.defaults()) == DEFAULT_GPUS == ("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb", "h100-80gb")


@pytest.mark.parametrize(
    ("name", "mebibytes", "capability", "bandwidth"),
    [
        ("rtx-3070-8gb", 7842, (8, 6), 448e9),
        ("rtx-4090-24gb", 24210, (8, 9), 1008e9),
        ("a100-40gb", 40339.3125, (8, 0), 1555e9),
        ("h100-80gb", 81089, (9, 0), 3350e9),
    ],
)
def test_the_defaults_hold_what_drivers_and_datasheets_print(name: str, mebibytes: float, capability: tuple[int, int], bandwidth: float) -> None:
    gpu = Gpu.named(name)

    assert (gpu.memory_bytes / MiB, gpu.capability, gpu.bandwidth_bytes_per_s) == (mebibytes, capability, bandwidth)


@pytest.mark.parametrize("gpu", CATALOGUE, ids=IDS)
def test_figures_are_plausible(gpu: Gpu) -> None:
    """The id's gigabytes, the ordering of rates, and the clock that the float32 rate implies."""
    assert gpu.sm_count and gpu.fp32_flops_per_s and gpu.bandwidth_bytes_per_s and gpu.l2_bytes and gpu.interconnect_bytes_per_s
    marketed = int(re.findall(r"(\d+)gb", gpu.id)[0])
    rates = [getattr(gpu, name) for name in RATES if getattr(gpu, name)]
    lanes = 64 if gpu.capability in {(7, 0), (7, 5), (8, 0)} else 128
    clock_hz = gpu.fp32_flops_per_s / (gpu.sm_count * lanes * 2)

    assert 0.9 * marketed * GiB < gpu.memory_bytes <= 1.0 * marketed * GiB
    assert rates == sorted(rates)
    assert 1.2e9 < clock_hz < 2.7e9
    assert 250e9 <= gpu.bandwidth_bytes_per_s <= 8000e9
    assert gpu.usable_bytes == gpu.memory_bytes - gpu.context_bytes > 0
    assert all(0.2 < share < 1.25 for share in (gpu.matmul_efficiency or {}).values())


@pytest.mark.parametrize("gpu", CATALOGUE, ids=IDS)
def test_tensor_rates_follow_the_architecture(gpu: Gpu) -> None:
    """bfloat16 and TF32 from Ampere on, at the rate and at half the rate of float16; float8 from Ada on, at twice the rate."""
    ampere, ada = gpu.capability >= (8, 0), gpu.capability >= (8, 9)
    fp16 = gpu.fp16_dense_flops_per_s

    assert fp16 is not None
    assert gpu.bf16_dense_flops_per_s == (fp16 if ampere else None)
    assert gpu.tf32_dense_flops_per_s == (pytest.approx(fp16 / 2, rel=0.02) if ampere else None)
    assert gpu.fp8_dense_flops_per_s == (pytest.approx(2 * fp16, rel=0.03) if ada else None)
    assert gpu.supports_bf16 == ampere
    assert "bf16" not in (gpu.matmul_efficiency or {}) or ampere


@pytest.mark.parametrize("gpu", CATALOGUE, ids=IDS)
def test_kinds_of_source(gpu: Gpu) -> None:
    """Prices are listed, efficiencies measured, derived figures say how; memory is what a driver said."""
    kinds = {figure: source.kind for source in gpu.sources for figure in source.figures}

    assert kinds["memory_bytes"] in {"reported", "measured", "derived"}
    assert kinds.get("price_usd_per_hour", "listed") == "listed"
    assert kinds.get("matmul_efficiency", "measured") == kinds.get("bandwidth_efficiency", "measured") == "measured"
    assert all(source.note for source in gpu.sources if source.kind == "derived")
    assert all(date(2025, 1, 1) < source.checked < date(2027, 1, 1) for source in gpu.sources)
    assert not re.search(r"\[[VMDC]\]|\[[VMDC]:", "".join(f"{source.source}{source.note}" for source in gpu.sources))


def test_only_the_two_small_cards_are_power_limited() -> None:
    assert {gpu.id for gpu in CATALOGUE if gpu.power_limited} == {"l4-24gb", "t4-16gb"}


def test_context_comes_from_the_runtime_with_its_source() -> None:
    runtime, gpu = hardware.runtime(), Gpu.named("a100-40gb")

    assert gpu.context_bytes == gpu.context.usual_bytes == runtime.context(108, "8.0").usual_bytes
    assert gpu.source_of("context_bytes") in runtime.sources
    assert {figure for source in runtime.sources for figure in source.figures} == set(type(runtime).model_fields) - {"sources"}


def test_source_of_an_absent_figure_is_none() -> None:
    assert Gpu.named("rtx-4060-8gb").source_of("price_usd_per_hour") is None


def test_schema_file_is_fresh() -> None:
    path = hardware.catalogue_folder() / "gpu.schema.json"

    assert path.read_text(encoding="utf-8") == hardware.schema(), "stale: bsmodel gpus --schema > hardware/gpu.schema.json"


# -- finding one ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a100-40gb", "A100-40GB", "a100 40gb", "a100_sxm4_40gb", "NVIDIA A100-SXM4-40GB"])
def test_named_reads_ids_names_and_aliases_in_any_case(name: str) -> None:
    assert Gpu.named(name).id == "a100-40gb"


@pytest.mark.parametrize("name", ["a100", "v100", "rtx-3060", "a100-400gb", "mi300x", ""])
def test_named_never_substitutes(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Gpu.named(name)

    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Gpu.named("rtx-4090-24g")

    assert caught.value.nearest[0] == "rtx-4090-24gb"


def test_users_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    single = written(tmp_path, ROW)
    written(folder, ROW.replace("my-gpu-10gb", "other-10gb").replace("My GPU", "Other"))
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, os.pathsep.join([str(single), "", str(folder)]))

    assert Gpu.named(str(single)) == Gpu.load(single) == Gpu.named("my gpu")
    assert {gpu.id for gpu in Gpu.all()} - set(IDS) == {"my-gpu-10gb", "other-10gb"}


def test_users_row_replaces_one_of_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(written(tmp_path, ROW.replace("my-gpu-10gb", "a100-40gb"))))

    assert Gpu.named("a100-40gb").memory_bytes == 10_000_000_000
    assert len(Gpu.all()) == len(CATALOGUE)


def test_an_edited_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ROW)
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(path))
    before = Gpu.named("my-gpu-10gb").memory_bytes
    written(tmp_path, ROW.replace("10_000_000_000", "9_000_000_000"))
    os.utime(path, ns=(0, 0))

    assert (before, Gpu.named("my-gpu-10gb").memory_bytes) == (10_000_000_000, 9_000_000_000)


def test_alias_of_two_gpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(written(tmp_path, ROW.replace("My GPU", "h100"))))

    with pytest.raises(InvalidInputError, match="GPU 'H100' may be my-gpu-10gb or h100-80gb; use one of these ids"):
        Gpu.named("H100")


def test_missing_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read '.*absent\.toml': No such file"):
        Gpu.named(str(tmp_path / "absent.toml"))
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(InvalidInputError, match=f"no hardware file or folder at .*absent'; see {SEARCH_PATH_VARIABLE}"):
        Gpu.all()


def test_import_reads_nothing_and_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from bsmodel.hardware import Gpu, runtime; assert runtime.cache_info().currsize == 0; Gpu.all(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, SEARCH_PATH_VARIABLE: ""})

    assert answer.stdout == "False\n"


# -- what is refused, and how it says so ---------------------------------------------------------------------------------------------


def test_the_row_that_the_refused_ones_are_made_from_is_accepted(tmp_path: Path) -> None:
    assert Gpu.load(written(tmp_path, ROW)).usable_bytes == 10_000_000_000 - hardware.runtime().context_bytes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_bytes = 10", "memory_byte = 10", "unknown field 'memory_byte'; nearest: memory_bytes, "),
        ("memory_bytes = 10_000_000_000\n", "", "field 'memory_bytes' is missing; expected: `total_memory` as torch and the driver report it"),
        ("= 10_000_000_000", "= -1", "memory_bytes is -1; expected a number greater than 0"),
        ("= 10_000_000_000", "= 0", "memory_bytes is 0; expected a number greater than 0"),
        ("= 10_000_000_000", "= 10e9", "memory_bytes is 10000000000.0; expected a valid integer"),
        ("= 10_000_000_000", '= "10 GB"', "memory_bytes is '10 GB'; expected a valid integer"),
        ("= 10_000_000_000", "= 1000", "memory_bytes is 1000; expected more than the CUDA context of 524288000 bytes"),
        ('"8.6"', "8.6", 'compute_capability is 8.6; expected a valid string, e.g. "8.6"'),
        ('"8.6"', '"sm86"', "compute_capability is 'sm86'; expected text to match pattern '^\\d+\\.\\d$', e.g. \"8.6\""),
        (', "compute_capability"]', "]", "no source covers compute_capability; name them in the figures of a [[sources]] row"),
        ("\n[[", "\nsm_count = 46\n[[", "no source covers sm_count; name them in the figures of a [[sources]] row"),
        ("\n[[", "\ncontext_bytes = 1_000\n[[", "no source covers context_bytes; name them in the figures of a [[sources]] row"),
        ('["memory_bytes"', '["memory_size"', "no source covers memory_bytes; name them in the figures of a [[sources]] row"),
        ('["memory_bytes"', '["memory_size", "memory_bytes"', "unknown figure in sources 'memory_size'; nearest: memory_bytes"),
        ('["memory_bytes"', '["sm_count", "memory_bytes"', "sources name sm_count, for which the row has no figure"),
        ("\n[[", "\nprice_usd_per_hour = inf\n[[", "price_usd_per_hour is inf; expected a finite number"),
        ("\n[[", "\nbandwidth_efficiency = 1.5\n[[", "bandwidth_efficiency is 1.5; expected a number less than or equal to 1"),
        ("\n[[", "\nmatmul_efficiency = { fp17 = 0.5 }\n[[", "a key of matmul_efficiency is 'fp17'; expected 'fp32', 'tf32', 'fp16', 'bf16' or 'fp8'"),
        ("\n[[", "\nmatmul_efficiency = { fp16 = -0.5 }\n[[", "matmul_efficiency.fp16 is -0.5; expected a number greater than 0"),
        ("checked = 2026-11-01", 'checked = "today"', "sources.0.checked is 'today'; expected a valid date, e.g. 2026-11-01"),
        ("checked =", "cheked =", "sources.0: unknown field 'cheked'; nearest: checked"),
        ('"reported"', '"rumour"', "sources.0.kind is 'rumour'; expected 'measured', 'reported', 'datasheet', 'derived' or 'listed'"),
        ('"nvidia-smi on my desk"', '""', "sources.0.source is ''; expected text to have at least 1 character"),
        (ROW[ROW.index("[[") :], "", "field 'sources' is missing; expected: Provenance: every figure of the row is covered by one of them"),
    ],
)
def test_refused_in_one_line_that_names_file_field_and_expectation(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in ROW
    path = written(tmp_path, ROW.replace(old, new, 1))

    with pytest.raises(InvalidInputError) as caught:
        Gpu.load(path)

    assert str(caught.value).startswith(f"{str(path)!r}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"id = ", b"\xff\xfe", b"id = 'a'\nid = 'b'"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(InvalidInputError, match=r"broken\.toml' is not TOML: [^\n]*$"):
        Gpu.load(path)


def test_a_gpu_is_frozen_and_hashable() -> None:
    gpu = Gpu.named("h100-80gb")

    with pytest.raises(ValidationError):
        gpu.memory_bytes = 1
    assert {gpu: 1}[gpu.model_copy()] == 1


def test_a_copy_is_held_to_the_schema() -> None:
    gpu = Gpu.named("rtx-3060-12gb")

    assert gpu.model_copy(update={"memory_bytes": 8 * GiB}).usable_bytes == 8 * GiB - gpu.context_bytes
    for update, message in (
        ({"memory_bytes": -1}, "a copy of rtx-3060-12gb: memory_bytes is -1; expected a number greater than 0"),
        ({"memory": 1}, "a copy of rtx-3060-12gb: unknown field 'memory'"),
        ({"bandwidth_efficiency": 0.8}, "a copy of rtx-3060-12gb: no source covers bandwidth_efficiency"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            gpu.model_copy(update=update)


# -- laws ----------------------------------------------------------------------------------------------------------------------------

rates = st.none() | st.floats(1, 1e18)
counts = st.none() | st.integers(1, 1 << 40)


@st.composite
def gpus(draw: st.DrawFn) -> Gpu:
    """Any row that the schema allows, with the sources it needs."""
    figures: dict[str, Any] = {name: draw(rates) for name in (*RATES, "bandwidth_bytes_per_s", "interconnect_bytes_per_s", "price_usd_per_hour")}
    figures |= {name: draw(counts) for name in ("sm_count", "l2_bytes")}
    figures["memory_bytes"] = draw(st.integers(1 * GiB, 1 << 50))
    figures["context_bytes"] = draw(st.integers(1, 1 * GiB - 1))
    figures["compute_capability"] = f"{draw(st.integers(5, 20))}.{draw(st.integers(0, 9))}"
    figures["matmul_efficiency"] = draw(st.none() | st.dictionaries(st.sampled_from(["fp32", "tf32", "fp16", "bf16", "fp8"]), st.floats(0.01, 2)))
    figures["bandwidth_efficiency"] = draw(st.none() | st.floats(0.01, 1))
    covered = tuple(name for name, value in figures.items() if value is not None)
    source = Source(figures=covered, source="drawn", checked=draw(st.dates()), kind="derived", note=draw(st.none() | st.text()))
    return Gpu(id="drawn", name=draw(st.text()), aliases=tuple(draw(st.lists(st.text()))), sources=(source,), **figures)


@given(gpus())
def test_a_gpu_survives_a_round_trip(gpu: Gpu) -> None:
    assert Gpu.model_validate(gpu.model_dump()) == gpu == Gpu.model_validate_json(gpu.model_dump_json())
    assert f"{gpu.capability[0]}.{gpu.capability[1]}" == gpu.compute_capability
    assert 0 < gpu.usable_bytes < gpu.memory_bytes


@given(gpus(), st.data())
def test_no_figure_goes_without_a_source(gpu: Gpu, data: st.DataObject) -> None:
    (source,) = gpu.sources
    lost = data.draw(st.sampled_from(source.figures))
    kept = tuple(figure for figure in source.figures if figure != lost)

    with pytest.raises(InvalidInputError, match=f"no source covers {lost};"):
        gpu.model_copy(update={"sources": (source.model_copy(update={"figures": kept}),)})


def test_binary_units_are_multiplied_out_in_units_only() -> None:
    """`* 1024**3` belongs to `units`: everything else multiplies by `GiB`."""
    arithmetic = re.compile(r"[*/]\s*1024\b|\b1024\s*\*\*|\b2\s*\*\*\s*[1234]0\b|\b1024\.0\b")
    assert all(arithmetic.search(wrong) for wrong in ("80 * 1024**3", "size / 1024", "24 * 2**30", "mib *1024"))

    found = [path.name for path in sorted(PACKAGE.glob("*.py")) if path.name != "units.py" and arithmetic.search(path.read_text("utf-8"))]

    assert found == []
