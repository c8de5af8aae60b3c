"""The report: what it says is what the board says, and its page is whole, safe and small."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting import EVIL, ROWS, TABLE, example
from toys import exit_code

from mad.cli import report as command_line
from mad.figures import board
from mad.report import contents, page
from mad.storage import records
from mad.storage.files import holder, lock_file, seal, write


@pytest.fixture(scope="module")
def html():
    pytest.importorskip("plotly")
    return page.html(TABLE)


class Page(HTMLParser):
    """What a page opens and closes, loads and links, and the text in its elements."""

    EMPTY = ("meta", "input", "wbr", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.links, self.ids, self.scripts, self.texts = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "action", "poster")]
        self.links += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += [given] * (tag == "script")
        assert not [name for name in given if name.startswith("on")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def test_the_page_of_500_records_is_whole_small_and_loads_nothing(html):
    assert len(TABLE) >= 500
    assert len(html) < 5_000_000
    found = Page(html.decode())
    assert found.open == []
    assert found.loads == []
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= {*found.ids}
    assert [name for name, times in Counter(found.ids).items() if times > 1] == []
    assert "default-src 'none'" in html.decode()
    style = html.decode().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_are_escaped_and_folders_of_the_machine_are_left_out(html):
    found, text = Page(html.decode()), html.decode()
    assert EVIL not in text
    assert text.count("<script") == len(found.scripts) == 3
    assert any(EVIL in each for each in found.texts)  # it is shown, as text
    assert "/home" not in text
    assert "…/net.pt" in text


def test_each_number_leads_to_its_records(html):
    text = html.decode()
    assert [each for each in TABLE.fingerprint if text.count(f">{each}<") < 2] == []  # of the member, and of the record
    assert text.count("mad-run defense=") >= len(TABLE)


def test_the_page_has_the_numbers_of_the_board_and_marks_one_seed(html):
    texts = "\n".join(Page(html.decode()).texts)
    ((title, table),) = board.boards(TABLE).items()
    assert title in texts
    for _, at in table.iterrows():
        assert f"{at.worst:.1f}" in texts
    few = example().members.seeds.eq(1).sum() + table.seeds.eq(1).sum()
    assert few > 0
    assert html.decode().count('class="mark">anecdote<') == few


def test_the_same_records_make_the_same_page():
    pytest.importorskip("plotly")
    few = TABLE[TABLE.recovery == "none"].reset_index(drop=True)
    assert page.html(few) == page.html(few)


def test_a_figure_shows_the_points_and_says_where_each_is_from(html):
    from mad.report import charts

    figure = charts.tradeoff(example().points[example().points.adversary == contents.STRONGEST], example().chance)
    mad = next(each for each in figure.data if each.name == "mad")
    ours = board.boards(TABLE)[example().title].query("defense == 'mad'").sort_values("strength")
    assert list(mad.y) == pytest.approx([*example().table[example().table.defense == "none"].worst, *ours.worst])
    assert list(mad.x) == pytest.approx([90, *100 * ours.defended_accuracy])
    assert "mad-run -m" in mad.hovertext[1]
    assert "recovery=bayes" in mad.hovertext[1].replace("<br>", " ")  # the strongest that a thief can be
    assert "1 seed: an anecdote" in next(each for each in figure.data if each.name == "top_k").hovertext[1]
    texts = [text for each in figure.data if each.name for text in (each.name, *each.hovertext)]
    assert any("&lt;script&gt;" in text for text in texts)  # plotly shows some tags
    assert not [text for text in texts if "<script" in text or "/home" in text]


CLICKS = """
<script>
const table = document.querySelector("table"), column = (place) => [...table.tBodies[0].rows]
  .filter((row) => !row.hidden).map((row) => row.cells[place].textContent.trim());
const heads = [...table.tHead.rows[0].cells], worst = heads.findIndex((each) => each.textContent === "worst %");
heads[worst].firstChild.click(); heads[worst].firstChild.click();
const falling = column(worst);
const field = document.querySelector("input"); field.value = "MAD epsilon"; field.dispatchEvent(new Event("input"));
const kept = column(0), count = document.querySelector("output").textContent;
library.then(() => {
  draw(charts[0]);
  const drawn = charts[0].querySelectorAll(".scatterlayer .trace").length;
  selectOf(charts[0]).value = 3; selectOf(charts[0]).dispatchEvent(new Event("change"));
  const told = charts[0].data[0].hovertext[0];
  document.body.textContent = JSON.stringify({ falling, kept, count, drawn, told, sort: heads[worst].ariaSort });
});
</script>
"""


def test_a_browser_sorts_filters_and_draws(html, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    (tmp_path / "page.html").write_text(html.decode().replace("</body>", f"{CLICKS}</body>"))
    line = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    line += ["--virtual-time-budget=10000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    found = json.loads(re.search(r"<body>(\{.*\})</body>", done.stdout)[1])
    falling = [float(each) for each in found["falling"]]
    assert falling == sorted(falling, reverse=True)
    assert len(falling) == len(example().table)
    assert found["sort"] == "descending"
    assert found["kept"]
    assert all("mad" in each for each in found["kept"])
    assert found["count"] == f"{len(found['kept'])} of {len(example().table)}"
    other = example().points.adversary.unique()[3]
    assert f"by {other}; 3 seeds" in found["told"].replace("…/", "/home/somebody/secret/")
    assert found["drawn"] == 2 * example().points[example().points.adversary == contents.STRONGEST].curve.nunique()


def test_nobody_clears_away_a_page_that_is_being_written(tmp_path, monkeypatch, capfd):
    """Whoever writes records.csv removes what dead processes left beside it."""
    others = records.write_csv(records.frame(ROWS[:40]), tmp_path / "others")

    def locking(path, content):
        assert (holder(tmp_path / lock_file(Path("records.csv"))) is not None) == (path.parent == tmp_path)
        write(path, content)

    monkeypatch.setattr("mad.storage.files.write", locking)
    for to in (tmp_path / "report.csv", tmp_path / "elsewhere" / "report.csv"):
        words = ("--outputs", tmp_path, "--records", others, "--format", "csv", "--to", to)
        assert exit_code(monkeypatch, command_line.main, "mad-report", *words) == 0, capfd.readouterr().err
        assert to.with_name("report-points.csv").is_file()


def test_the_command_writes_what_is_asked_for(tmp_path, monkeypatch, capfd):
    for each in ROWS[:40]:
        folder = tmp_path / "runs" / each["victim"] / each["defense"] / each["attack"] / each["fingerprint"]
        folder.mkdir(parents=True)
        (folder / "record.json").write_bytes(seal(each))

    def run(*words):
        return exit_code(monkeypatch, command_line.main, "mad-report", *words), capfd.readouterr()

    assert run("--outputs", tmp_path, "--format", "csv")[1].out.split() == [
        str(tmp_path / "report-boards.csv"),
        str(tmp_path / "report-points.csv"),
    ]
    assert run("--outputs", tmp_path, "--format", "latex", "--to", tmp_path / "a" / "b.tex")[0] == 0
    assert (tmp_path / "a" / "b.tex").read_text().startswith("%")
    code, said = run("--outputs", tmp_path, "--format", "pdf")
    assert (code, said.err.count("\n")) == (1, 1)
    code, said = run("--outputs", tmp_path / "none")
    assert code == 1
    assert "run mad-run first" in said.err
    others = records.write_csv(records.frame(ROWS[:80]), tmp_path / "others")
    both = [("--outputs", tmp_path, "--records", others), ("--outputs", tmp_path / "none", "--records", others)]
    made = []
    for words in both:
        assert run(*words, "--format", "latex", "--to", tmp_path / "both.tex")[0] == 0
        made.append((tmp_path / "both.tex").read_text())
    assert made[0] == made[1] != (tmp_path / "a" / "b.tex").read_text()
    page.library.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, said = run("--outputs", tmp_path)
    assert code == 1
    assert "pip install 'mad[report]'" in said.err
    assert said.err.count("\n") == 1
