# SPDX-License-Identifier: Apache-2.0
"""The page by length: every length and GPU is drawn and in the tables, with the library's numbers, and lengths that were recorded are marked."""

import json
import math
from dataclasses import replace

import pytest

import bsmodel
from bsmodel import Training
from bsmodel.command import lengths as command
from bsmodel.command import main
from bsmodel.command.lengths import batch_cells, speed_cells
from bsmodel.command.lengths_page import page
from bsmodel.pages.curves import sign
from bsmodel.studies import by_length
from tests.models import of_size
from tests.test_adapters import GPT2
from tests.test_configs import built
from tests.test_pages import EVIL, csv_tables, html_tables
from tests.test_trial_page import Parts, specs, words

alt = pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")
pytest.importorskip("transformers")

CHARTS = ("batches", "sizes", "speeds")
GPT2_LM = {**GPT2, "architectures": ["GPT2LMHeadModel"]}
RESNET = {"model_type": "resnet", "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "layer_type": "basic"}


@pytest.fixture(scope="module")
def lengths(tmp_path_factory, a100):
    """A small model of texts from 128 to 1,024 tokens."""
    file = tmp_path_factory.mktemp("model") / "config.json"
    file.write_text(json.dumps(GPT2_LM))
    return bsmodel.trace_lengths(lambda length: built(str(file), seq_len=length)[0], Training(precision="fp32", optimizer="sgd"), a100, 128, 1024)


@pytest.fixture(scope="module")
def made(lengths, a100):
    """On three cards, of which one holds only short samples and one none."""
    small = [of_size(a100, size).model_copy(update={"id": f"card-{size}"}) for size in (1000, 510)]
    return by_length([lengths] * 3, [a100, *small], [128, 256, 512, 1024])


def drawn_of(made, lengths):
    return page(made.recorded[0], made, lengths, (batch_cells(made), speed_cells(made)), ["Recorded with torch."])


@pytest.fixture(scope="module")
def drawn(made, lengths):
    return drawn_of(made, [lengths])


def points(text, name):
    return specs(text)[name]["datasets"]["rows"]


def test_every_length_at_which_a_sample_fits_is_a_point_of_each_chart(made, drawn):
    fitting = [(row.gpu, row.seq_len) for row in made.rows if row.largest_batch]

    assert 0 < len({gpu for gpu, _ in fitting}) < 3 and len(fitting) < len(made.rows)
    for name in CHARTS:
        assert sorted((point["gpu"], point["length"]) for point in points(drawn, name)) == sorted(fitting)
    assert "Not drawn, where no sample of these lengths fits: card-510." in words(drawn)
    assert "card-510: not one sample fits, however short." in words(drawn)


def test_the_numbers_of_the_points_are_those_of_the_rows(made, drawn):
    rows = {(row.gpu, row.seq_len): row for row in made.rows}
    figures = {"batches": lambda row: row.largest_batch, "sizes": lambda row: row.largest_batch * row.seq_len, "speeds": lambda row: row.tokens_per_s}
    for name, of in figures.items():
        for point in points(drawn, name):
            row = rows[point["gpu"], point["length"]]
            assert point["value"] == pytest.approx(of(row), rel=1e-5)
            assert point["size"] == pytest.approx(row.largest_batch * row.seq_len, rel=1e-5)
    for point in points(drawn, "batches"):
        assert point["likely"] == pytest.approx(rows[point["gpu"], point["length"]].likely_batch, rel=1e-5)


def test_on_a_dotted_line_a_step_has_as_many_tokens_as_is_said(drawn):
    guides = specs(drawn)["batches"]["datasets"]["guides"]

    assert guides
    for guide in guides:
        tokens = int(guide["label"].removesuffix(" tokens").replace(",", ""))
        assert guide["length"] * guide["value"] == pytest.approx(tokens, rel=1e-4) and math.log2(tokens).is_integer()


def test_lengths_that_were_recorded_are_marked(lengths, drawn):
    layers = specs(drawn)["batches"]["layer"]
    strokes = next(layer["data"]["values"] for layer in layers if layer["mark"]["type"] == "rule")

    assert [stroke["length"] for stroke in strokes] == sorted({*(tape.tokens_per_sample for piece in lengths.pieces for tape in piece.tapes), lengths.most})


def test_every_chart_is_what_altair_and_vega_take(drawn):
    assert tuple(specs(drawn)) == CHARTS
    for name, spec in specs(drawn).items():
        assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
        svg = vl_convert.vegalite_to_svg(spec)
        assert svg.startswith("<svg") and "NaN" not in svg and "undefined" not in svg, name


def test_the_tables_are_those_of_the_text_and_of_their_files(made, drawn):
    files = csv_tables(drawn)

    assert html_tables(drawn) == [line for table in files.values() for line in table]
    assert list(files) == ["batches", "speeds"]
    assert files["batches"][1:] == [[*map(str, line)] for line in batch_cells(made)[1]]
    assert files["speeds"][1:] == [[*map(str, line)] for line in speed_cells(made)[1]]
    assert not Parts(drawn).open and len(drawn.encode()) < 2e6


def test_where_nothing_fits_the_page_says_so(made, lengths):
    nothing = replace(made, rows=tuple(replace(row, largest_batch=0, likely_batch=0) for row in made.rows), longest=dict.fromkeys(made.longest, 0))
    found = drawn_of(nothing, [lengths])

    assert specs(found) == {} and words(found).count("There is no chart: no sample of these lengths fits.") == 2


def test_one_length_is_a_page(made, lengths):
    found = drawn_of(replace(made, rows=tuple(row for row in made.rows if row.seq_len == 256)), [lengths])

    for spec in specs(found).values():
        assert "NaN" not in vl_convert.vegalite_to_svg(spec)


def test_names_are_text_wherever_they_stand(made, lengths):
    rows = tuple(replace(row, gpu=EVIL + row.gpu) for row in made.rows)
    renamed = {name: {EVIL + gpu: length for gpu, length in getattr(made, name).items()} for name in ("longest", "limits")}
    evil = replace(made, rows=rows, **renamed)
    found = drawn_of(replace(evil, recorded=(replace(made.recorded[0], name=EVIL),)), [lengths])

    assert not Parts(found).open and "<script>alert" not in found and all(tag != "img" for tag, _ in Parts(found).tags)


def test_no_two_of_thirty_six_curves_look_alike():
    assert len({sign(place) for place in range(36)}) == 36


def test_the_command_writes_what_its_text_says(config, capsys, tmp_path):
    path = tmp_path / "lengths.html"
    assert main(["plan", config(GPT2_LM), "--seq-len", "256:1024", "--gpu", "rtx-3070-8gb", "--no-cache", "--html", str(path)]) == 0
    text, found = capsys.readouterr().out, path.read_text()

    assert "256, 512, 1,024" in words(found) and "Recorded with torch" in words(found)
    for table in csv_tables(found).values():
        for cells in table[1:]:
            assert all(cell in text for cell in cells)


def test_sides_of_images_are_drawn_with_pixels_as_their_square(config, tmp_path):
    path = tmp_path / "sides.html"
    folder = config({**RESNET, "architectures": ["ResNetForImageClassification"]})
    assert main(["plan", folder, "--image-size", "64:192:64", "--gpu", "rtx-3070-8gb", "--no-cache", "--html", str(path)]) == 0
    found = path.read_text()

    for point in points(found, "batches"):
        assert point["size"] == pytest.approx(point["value"] * point["length"] ** 2, rel=1e-4)
    guides = specs(found)["batches"]["datasets"]["guides"]
    assert guides
    for guide in guides:
        pixels = int(guide["label"].removesuffix(" pixels").replace(",", ""))
        assert guide["length"] ** 2 * guide["value"] == pytest.approx(pixels, rel=1e-4)
    assert "Samples a second" in words(found)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--seq-len", "128:256", "--html", "no/such/folder/page.html"), "cannot write the page 'no/such/folder/page.html'"),
        (
            ("--lengths", "100:200", "--html", "page.html"),
            "--html draws no batches of mixed lengths; leave out --lengths, or give --seq-len N:M for a chart by",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_work(flags, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "_found", None)

    assert main(["plan", "gpt2", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"bsmodel: {said}")
