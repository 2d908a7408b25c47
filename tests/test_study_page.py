# SPDX-License-Identifier: Apache-2.0
"""The page of a study: every row is drawn and in the table, with the library's numbers or the reason why there are none."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel.command import main
from bsmodel.command import study as command
from bsmodel.command.compare import way_of
from bsmodel.command.study_page import page
from bsmodel.pages import brief, number
from bsmodel.pages.tiles import DEEPEST, PALEST, depths
from bsmodel.parallel import Parallel
from bsmodel.studies import Goal, study
from bsmodel.studies.executors import Here
from tests.models import attention, of_size, workload
from tests.test_pages import EVIL, MINE, csv_tables, html_tables
from tests.test_trial_page import Parts, specs, words

alt = pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

GOAL = Goal(target_batch=4096, samples=10**6, epochs=2)
GRIDS = ("largest", "samples", "usd")


@pytest.fixture(scope="module")
def rows():
    """Two models, two recipes, three cards of which one has no bf16 and one holds nothing, on one device and on four."""
    gpus = (bsmodel.Gpu.named("a100-40gb"), bsmodel.Gpu.named("t4-16gb"), of_size(bsmodel.Gpu.named("rtx-3070-8gb"), 502))
    recipes = ({"precision": "fp32"}, {"precision": "bf16-mixed"})
    return study([attention(), workload()], recipes, gpus, (1, 4), [GOAL], executor=Here()).rows


@pytest.fixture(scope="module")
def drawn(rows):
    return page(rows, [4096], [("Samples", "1,000,000")], ["Refused: no bf16."])


def tiles(text, name):
    return specs(text)[name]["datasets"]["rows"]


# -- cells ---------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(1e-9, 1e15)))
def test_what_is_larger_is_no_paler_and_what_is_nothing_has_no_colour(values):
    found = depths(values)
    known = sorted((value, depth) for value, depth in zip(values, found) if value is not None)

    assert [depth is None for depth in found] == [value is None for value in values]
    assert [depth for _, depth in known] == sorted(depth for _, depth in known)
    assert all(PALEST - 1e-9 <= depth <= DEEPEST + 1e-9 for _, depth in known)


@given(st.floats(1e-6, 1e14))
def test_three_digits_are_the_number(value):
    text = brief(value)
    size = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)

    assert float(text.rstrip("kMGT")) * size == pytest.approx(value, rel=0.00501)
    assert len(text.rstrip("kMGT").replace(".", "").lstrip("0")) <= 3 or "e" in text


@pytest.mark.parametrize(("value", "text"), [(999.4, "999"), (999.7, "1k"), (1000, "1k"), (12345, "12.3k"), (0.00271, "0.00271"), (2.5e6, "2.5M"), (1, "1")])
def test_a_number_in_a_cell_is_brief(value, text):
    assert brief(value) == text


# -- grids ---------------------------------------------------------------------------------------------------------------------------------


def test_every_row_is_a_cell_of_each_grid_and_a_line_of_the_table(rows, drawn):
    _, *lines = csv_tables(drawn)["rows"]

    assert len(lines) == len(rows) == 24
    for name in GRIDS:
        found = tiles(drawn, name)
        assert [tile["row"] for tile in found] == [*range(len(rows))]
        assert [tile["column"] for tile in found] == [row.gpu for row in rows]
        assert len({(tile["line"], tile["column"]) for tile in found}) == len(rows)
    assert [(line[0], line[2]) for line in lines] == [(row.workload, row.gpu) for row in rows]


def test_the_numbers_in_the_cells_are_those_of_the_rows(rows, drawn):
    figures = {
        "largest": lambda row: row.largest_batch or None,
        "samples": lambda row: row.timing and row.timing.samples_per_s,
        "usd": lambda row: row.timing and row.timing.cost_usd,
    }
    for name, of in figures.items():
        for row, tile in zip(rows, tiles(drawn, name), strict=True):
            value = of(row)
            assert tile["text"] == (brief(value) if value else {"refused": "refused", "does not fit": "OOM"}[row.status])
            assert tile["state"] == ("known" if value else {"refused": "unknown", "does not fit": "wrong"}[row.status])
            assert tile["t3"] == (f"{value:,.6g}" if value else tile["text"])
            assert tile["t6"] == ("" if row.fits else row.verdict)


def test_cells_without_a_number_are_told_apart_by_words(rows, drawn):
    assert {row.status for row in rows} == {"plan", "does not fit", "refused"}
    assert "OOM: not one sample fits" in words(drawn) and "refused: it cannot be answered, and the table says why" in words(drawn)
    unreachable = page([replace(row, status="does not fit", timing=None) if row.fits else row for row in rows], [4096], [], [])
    assert {tile["text"] for tile in tiles(unreachable, "usd")} == {"OOM", "refused", "no split"}
    assert "no split: no number of samples makes the target" in words(unreachable)


def test_what_has_no_time_and_what_has_no_price_says_so(rows):
    untimed = [replace(row, timing=None, untimed="no rate is known") if row.fits else row for row in rows]
    unpriced = [replace(row, timing=replace(row.timing, price=None, cost_usd=None, usd_per_million=None)) if row.fits else row for row in rows]

    assert "no time" in {tile["text"] for tile in tiles(page(untimed, [], [], []), "samples")}
    assert "no rate is known" in [line[-1] for line in csv_tables(page(untimed, [], [], []))["rows"]]
    assert "no price" in {tile["text"] for tile in tiles(page(unpriced, [], [], []), "usd")}
    assert "There is no chart: no row has both a time and a price." in words(page(unpriced, [], [], []))
    asked = [replace(row, timing=replace(row.timing, unpriced="there is no such offer")) if row.fits else row for row in unpriced]
    unoffered = page(asked, [], [], [])
    assert "no offer" in {tile["text"] for tile in tiles(unoffered, "usd")} and "the catalogue has no price" not in words(unoffered)
    assert "there is no such offer" in [line[-1] for line in csv_tables(unoffered)["rows"]]


@pytest.mark.parametrize(("name", "best"), [("samples", max), ("usd", min)])
def test_the_best_of_each_line_is_outlined(name, best, rows, drawn):
    values = [row.timing and (row.timing.samples_per_s if name == "samples" else row.timing.cost_usd) for row in rows]
    found, lines = tiles(drawn, name), {}
    for tile, value in zip(found, values, strict=True):
        lines.setdefault(tile["line"], []).append((value, tile["best"]))

    for several in lines.values():
        known = [value for value, _ in several if value]
        assert [value for value, outlined in several if outlined] == [value for value in known if value == best(known)]


def test_colours_begin_anew_with_each_model(rows, drawn):
    for model in {row.workload for row in rows}:
        depths_of_model = {tile["depth"] for row, tile in zip(rows, tiles(drawn, "largest")) if row.workload == model and tile["state"] == "known"}
        assert (min(depths_of_model), max(depths_of_model)) == (PALEST, DEEPEST)


def test_lines_of_one_name_stay_two(rows):
    """Recipes that are called alike are not."""
    alike = [{"parallel": Parallel(kind="fsdp2", devices=4, reshard_after_forward=again).model_dump(mode="json")} for again in (True, False)]
    several = [replace(rows[0], recipe=recipe, devices=4) for recipe in alike]
    found = tiles(page(several, [], [], []), "largest")

    assert way_of(several[0]) == way_of(several[1]) and len({tile["line"] for tile in found}) == 2


def test_targets_are_lines_where_there_are_several(rows):
    several = [replace(row, target_batch=target) for row in rows[:1] for target in (64, 4096)]
    apart = [several[0], replace(several[1], gpu="t4-16gb")]

    assert [tile["line"] for tile in tiles(page(several, [64, 4096], [], []), "largest")] == ["0|target 64", "1|target 4,096"]
    assert len({tile["line"] for tile in tiles(page(apart, [], [], []), "largest")}) == 1  # the largest batch of each card: no target was asked for


def test_recordings_of_one_name_are_lines_and_models_of_their_own(rows):
    """Rows of saved tapes say in the recording what they are of, and of one that is refused nothing is recorded."""
    known = [replace(rows[0].recorded, options={"seq_len": length}, recipe={"ema": length == 512}) for length in (512, 1024)]
    apart = [replace(rows[0], recipe={}, gpu=gpu, recorded=of if gpu == "a" else None) for of in known for gpu in "ab"]
    found = page(apart, [], [], [])
    alike = page([replace(row, recorded=row.recorded and replace(row.recorded, options={})) for row in apart], [], [], [])

    assert [tile["line"][0] for tile in tiles(found, "largest")] == ["0", "0", "1", "1"]
    assert "attention, seq len 512" in words(found) and "attention, seq len 1024" in words(found) and "Study of 2 models" in words(found)
    assert {"costs-0", "costs-1"} <= set(specs(found))  # hours of one say nothing about the other
    assert [tile["line"] for tile in tiles(alike, "largest")] == ["0|ema", "0|ema", "1|no ema", "1|no ema"]


# -- the page ------------------------------------------------------------------------------------------------------------------------------


def test_every_chart_is_what_altair_and_vega_take(drawn):
    assert list(specs(drawn)) == [*GRIDS, "costs-0", "costs-1"]
    for name, spec in specs(drawn).items():
        assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
        svg = vl_convert.vegalite_to_svg(spec)
        assert svg.startswith("<svg") and "NaN" not in svg and "undefined" not in svg, name


def test_money_and_hours_are_those_of_each_model_with_the_efficient_ways_first(rows, drawn):
    for place, model in enumerate(("attention", "small")):
        sets = specs(drawn)[f"costs-{place}"]["datasets"]
        known = [row for row in rows if row.workload == model and row.timing and row.timing.cost_usd]
        assert [point["hours"] for point in sets["rows"]] == pytest.approx([row.timing.hours for row in known], rel=1e-5)
        assert [point["usd"] for point in sets["rows"]] == pytest.approx([row.timing.cost_usd for row in known], rel=1e-5)
        cheapest = min(row.timing.cost_usd for row in known)
        assert f"{model}, for the run:" in words(drawn) and f"{number(cheapest)} USD" in words(drawn)
        assert sets["frontier"][-1]["usd"] == pytest.approx(cheapest, rel=1e-5)


def test_the_table_is_that_of_its_file_with_every_reason(rows, drawn):
    ((name, table),) = csv_tables(drawn).items()

    assert html_tables(drawn) == table and name == "rows"
    for row, line in zip(rows, table[1:], strict=True):
        assert line[-1] == ("-" if row.fits else row.verdict)
    assert f"24 answers: {sum(row.fits for row in rows)} have a plan" in words(drawn)


def test_a_page_of_three_hundred_rows_is_small(rows):
    many = [replace(row, workload=f"{row.workload} {number}") for number in range(13) for row in rows]
    text = page(many, [4096], [], [])

    assert len(many) >= 300 and len(tiles(text, "usd")) == len(many)
    assert len(text.encode()) < 3e6


def test_names_are_text_wherever_they_stand(rows):
    found = page([replace(row, workload=EVIL, gpu=EVIL + row.gpu, verdict=EVIL, recipe={"precision": EVIL + str(row.recipe)}) for row in rows], [], [], [EVIL])

    assert not Parts(found).open and "<script>alert" not in found and all(tag != "img" for tag, _ in Parts(found).tags)
    for spec in specs(found).values():
        assert "<img" not in vl_convert.vegalite_to_svg(spec)


def test_one_row_is_a_page(rows):
    found = page(rows[:1], [], [], [])

    assert words(found).count("Study of attention") == 2 and not any(tile["best"] for tile in tiles(found, "samples"))


# -- the command ---------------------------------------------------------------------------------------------------------------------------

ASKED = ("study", "--cache", "--model", MINE, "--gpu", "a100-40gb", "--gpu", "t4-16gb", "--precision", "fp32", "--precision", "bf16-mixed")


def test_the_command_writes_what_its_text_says(tmp_path, capsys):
    path = tmp_path / "study.html"
    assert main([*ASKED, "--samples", "1000000", "--html", str(path)]) == 0
    text, found = capsys.readouterr().out, words(path.read_text())

    for line in csv_tables(path.read_text())["rows"][1:]:
        assert all(cell in text for cell in line)
    assert "Refused: t4-16gb has no bf16 arithmetic" in text and "Refused: t4-16gb has no bf16 arithmetic" in found
    assert "Precision fp32, bf16-mixed" in found and "Samples 1,000,000" in found
    assert "for a million samples" in found  # epochs are not known


def test_a_study_that_is_interrupted_leaves_the_page_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "study.html"
    path.write_text("before")

    def stops(*axes, watch, **named):
        watch(bsmodel.studies.Progress(1, 4))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", stops)
    assert main([*ASKED, "--html", str(path)]) == 130
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--html", "no/such/folder/study.html"), "cannot write the page 'no/such/folder/study.html'"),
        (("--html", "one", "--out", "./one"), "--html and --out both name 'one'; give each a file of its own"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(flags, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "study", None)

    assert main([*ASKED, *flags]) == 2
    assert capsys.readouterr().err.startswith(f"bsmodel: {said}") and not [*tmp_path.iterdir()]


def test_json_is_the_answer_beside_a_page(tmp_path, capsys):
    assert main([*ASKED, "--json", "--html", str(tmp_path / "study.html")]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--price", "a100-40gb=1", "--price", "a100-40gb=2"), "two prices of a100-40gb are given, 1 and 2; give one"),
        (("--html", "."), "cannot write the page '.': it is there, and no regular file"),
    ],
)
def test_what_flags_say_twice_or_wrongly_is_refused(flags, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "study", None)
    assert main([*ASKED, *flags]) == 2
    assert capsys.readouterr().err == f"bsmodel: {said}\n"


def test_prices_of_a_file_are_a_table_and_those_given_here_go_before_them(capsys, monkeypatch, tmp_path):
    path, seen = tmp_path / "study.toml", []

    def asked(*axes, **named):
        seen.append(axes[4][0].prices)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", asked)
    path.write_text(f'workloads = ["{MINE}"]\ngpus = ["a100-40gb", "t4-16gb"]\nprices = 3\n')
    assert main(["study", str(path), "--price", "a100-40gb=1"]) == 2
    assert "prices: input should be a valid dictionary" in capsys.readouterr().err
    path.write_text(path.read_text().replace("prices = 3", "prices = { a100-40gb = 5, t4-16gb = 6 }"))
    assert main(["study", str(path), "--price", "a100-40gb=1"]) == 130
    assert {name: price.usd_per_hour for name, price in seen[0]} == {"a100-40gb": 1, "t4-16gb": 6}
