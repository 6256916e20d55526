"""The benchmarks' arithmetic and pages; what they measure is for `make bench`."""

import re

import pytest

from benchmarks import __main__ as runner
from benchmarks import common, course
from tools import ROOT


def test_ways_take_turns_in_an_order_that_moves_on():
    called = []
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    samples = common.in_turn(ways, 3, "test", measure=lambda way: way() or 1.0)
    assert "".join(called) == "abcbcacab"
    assert samples == {name: [1.0] * 3 for name in "abc"}


def test_a_ratio_is_the_median_of_the_rounds():
    samples = {"ours": [2.0, 30.0, 6.0], "theirs": [1.0, 10.0, 1.0]}
    assert common.ratio(samples, "ours", "theirs") == 3  # of 2, 3 and 6
    table = common.timing_table(samples, "theirs")
    assert list(table["median s"]) == [6.0, 1.0]
    assert list(table["times theirs"]) == [3.0, 1.0]


def run_of(date, value):
    about = dict.fromkeys(("machine", "versions", "load", "environment"), "some")
    about["date"] = date
    table = [{"way": "ours", "median s": 1.0}]
    entry = {
        "benchmark": "ddp",
        "seconds": 1,
        "table": table,
        "samples": {},
        "more": [],
    }
    return about | entry | {"ratios": {"ours / theirs": value}}


def test_the_page_compares_the_last_two_runs():
    newest = run_of("3rd", 2.2) | {"more": [{"what": "moved", "MB": 40.0}]}
    page = runner.page([run_of("1st", 9.0), run_of("2nd", 2.0), newest])
    assert "| moved | 40.0 |" in page
    assert "| ours / theirs | 2 | 2.2 | +10% |" in page
    assert "1st" not in page


def test_a_run_is_added_and_none_lost(tmp_path, monkeypatch):
    for name in ("RUNS", "RESULTS", "HERE"):
        file = tmp_path / getattr(runner, name).name
        monkeypatch.setattr(runner, name, tmp_path if name == "HERE" else file)

    class Module:
        NAME, TITLE = "ddp", "One process and two"

        @staticmethod
        def plot(table, axis):
            axis.barh(table["way"], table["median s"])
            return "a finding"

    for date in ("1st", "2nd"):
        runner.write(run_of(date, 2.0), Module)
    dates = [run["date"] for run in runner.read_runs(tmp_path / "runs.json")]
    assert dates == ["1st", "2nd"]
    assert "| ours / theirs | 2 | 2 | 0 % |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "ddp.png").stat().st_size > 1000


def test_lessons_times_are_their_cells_together(tmp_path):
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="notebooks.01_summary.ipynb" name="Cell 0" time="0.5" />'
        '<testcase classname="notebooks.01_summary.ipynb" name="Cell 1" time="3.25" />'
        '<testcase classname="tests.test_data" name="test_a" time="9" />'
        '<testcase classname="tests.test_data" name="test_b" time="0">'
        '<skipped message="needs a GPU" /></testcase></testsuite></testsuites>'
    )
    assert course.read(tmp_path / "report.xml") == ({"01_summary": 3.75}, 3)


def test_the_page_is_that_of_the_runs():
    runs = runner.read_runs(ROOT / "benchmarks" / "runs.json")
    page = (ROOT / "benchmarks" / "results.md").read_text("utf-8")
    assert page == runner.page(runs)
    pictures = re.findall(r"\((\w+\.png)\)", page)
    assert len(pictures) == len(runner.NAMES)
    for picture in pictures:
        assert (ROOT / "benchmarks" / picture).is_file()


@pytest.mark.parametrize("codes", [{}, {"ddp": 1}])
def test_several_run_each_in_a_process_of_its_own(codes, monkeypatch):
    started = []

    def alone(name, *rest):
        started.append((name, *rest))
        return codes.get(name, 0)

    monkeypatch.setattr(runner, "run_alone", alone)
    assert runner.main(["--quick"]) == max(codes.values(), default=0)
    assert started == [(name, "--quick") for name in runner.NAMES]


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["sumary"])
    assert "there are summary, checkpoint" in capsys.readouterr().err
