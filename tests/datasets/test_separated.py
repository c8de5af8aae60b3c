"""Each cell of a CSV or TSV file lies under the name that stands above it."""

import pytest

from mad.attacks.replay import Replay
from mad.datasets import separated, tables
from mad.errors import MadError

WIDE = "a row has 3 cells, its first line names 2 columns: name each column, or put what has ',' in it in quotes$"


@pytest.mark.parametrize("end", ["", ",", ",,", ", "])
@pytest.mark.parametrize("rest", [True, False])
def test_a_separator_at_the_end_of_a_row_adds_no_cell(end, rest, tmp_path):
    for name, sep in (("t.csv", ","), ("t.tsv", "\t")):
        text = f"image,label\n007,NA{end}\n8,{end if rest else ''}\n".replace(",", sep)
        (tmp_path / name).write_text(text)
        found = separated.read(tmp_path / name)
        assert found.to_dict("list") == {"image": ["007", "8"], "label": ["NA", ""]}


def test_a_log_with_a_separator_at_the_end_of_each_row(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_bytes(b"")
    (tmp_path / "log.csv").write_text("image,p0,p1\nimages/a,0.25,0.75,\nimages/b,1,0,\n")
    opened = Replay(log=str(tmp_path / "log.csv")).opened
    assert opened.posteriors(2, "it").tolist() == [[0.25, 0.75], [1, 0]]
    assert [each.name for each in opened.listing.images] == ["a", "b"]


@pytest.mark.parametrize("text", ["0,a.png,x\n1,b.png,y\n", "a.png,x\nb.png,y,\n", "a.png,x,\nb.png,y,1\n"])
def test_cells_without_a_name_are_refused(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,label\n" + text)
    with pytest.raises(MadError, match=f"{WIDE}|Expected 2 fields in line 3, saw 3") as refused:
        tables.of_table(path, None, None, "it")
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
