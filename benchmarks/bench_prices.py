# SPDX-License-Identifier: Apache-2.0
"""How fast offers are read: python -m pytest benchmarks/bench_prices.py -o python_files='bench_*.py' (pytest-benchmark).

Both files are made of the rows in tests/data/skypilot: 10 MB of AWS', again and again in other regions, and a table with 5,000 of such offers.
"""

import csv
from datetime import date
from pathlib import Path

import pytest

from bsmodel import prices
from bsmodel.hardware import Gpu

RECORDED = Path(__file__).parent.parent / "tests" / "data" / "skypilot"
DAY = date(2026, 11, 29)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A folder with AWS' file alone, of 10 MB."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "aws").mkdir()
    heading, *rows = csv.reader((RECORDED / "aws" / "vms.csv").read_text(encoding="utf-8").splitlines())
    places = [heading.index("Region"), heading.index("AvailabilityZone")]
    with (folder / "aws" / "vms.csv").open("w", encoding="utf-8", newline="") as file:
        writer, copies = csv.writer(file, lineterminator="\n"), 0
        writer.writerow(heading)
        while file.tell() < 10e6:
            writer.writerows([f"{cell}-{copies}" if place in places else cell for place, cell in enumerate(row)] for row in rows)
            copies += 1
    Gpu.all()  # read once, and not for prices
    return folder


def test_a_catalogue_of_10_mb(benchmark, catalogue):
    """As `bsmodel prices update` reads it."""
    _, (account,) = benchmark(prices.read_catalogue, catalogue, DAY)

    benchmark.extra_info |= {"rows": account.rows, "offers": account.offers}
    assert account.rows == account.used.total() + account.left_out.total() > 30_000


def test_a_table_of_5000_offers(benchmark, catalogue, tmp_path, monkeypatch):
    """As every plan and comparison loads what is kept."""
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path))
    prices.keep(prices.read_catalogue(catalogue, DAY)[0][:5000])

    assert len(benchmark(prices.kept)) == 5000
