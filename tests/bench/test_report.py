"""The report: whole, self-contained, escaped, and right in a browser without a network."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from ltbench.bench.score import claims, leaderboard, results
from ltbench.bench.show import figures, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "it\'s"'
VOID = {"meta", "img", "br", "path", "circle", "rect", "input", "link"}


class Checker(HTMLParser):
    """Collects tags and addresses, and that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def page(make_run, tmp_path):
    """A report of three rows, one of whose names is an attack, with a picture and a claim."""
    for name, recalls in (("ce", (0.9, 0.6, 0.2)), ("vs", (0.8, 0.8, 0.7))):
        for seed in (0, 1):
            make_run(name, seed, recalls, logits=True)
    folder = make_run(EVIL, 0, (0.5, 0.5, 0.5), folder=tmp_path / "runs/evil")
    record = json.loads((folder / "record.json").read_text())
    record["data"]["class_names"] = [EVIL, "bee", "cat"]
    record["cause"] = record["git"]["commit"] = record["device"] = EVIL
    record["metrics"]["last"]["test"] |= {"min_coverage": None}
    for run in (tmp_path / "runs").iterdir():
        other = json.loads((run / "record.json").read_text())
        other["data"]["class_names"] = record["data"]["class_names"]
        (run / "record.json").write_text(json.dumps(other | {"name": other["name"]}))
    (folder / "record.json").write_text(json.dumps(record))
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "traces.png")
    (folder / "samples").mkdir()
    for name in ("epoch_00010", "last"):  # of the grids of a GAN the report shows the last
        Image.new("RGB", (8, 8), (0, 255, 0)).save(folder / f"samples/{name}.png")
    (folder / "analysis").mkdir()
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / "analysis/hessian.png")
    (folder / "analysis/hessian.json").write_text(
        json.dumps(
            {
                "title": "Curvature of each class",
                "summary": [["tail: ratio", EVIL]],
                "figures": ["hessian.png", "../traces.png", "gone.png"],
                "tables": ["hessian.csv"],
            }
        )
    )
    (folder / "analysis/rank.json").write_text('{"title": "cut o')
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/record.json").write_text("<b>not json</b>")
    collected = results.of_folder(tmp_path / "runs")
    board = leaderboard.build(collected)
    claim = claims.Claim(
        *("1234.5", "table <1>", "protocol & more", "verified", "digits", "ce", "accuracy"),
        *(0.9, 0.01, {}),
    )
    return report.html(board, claims.judge([claim], board))


def test_nothing_is_loaded_from_elsewhere(page):
    checker = parsed(page)
    assert all(address.startswith(("#", "data:")) for address in checker.addresses)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page


def test_what_users_named_stays_text(page):
    checker = parsed(page)
    assert checker.tags.count("script") == 1
    assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert checker.tags.count("img") == 3  # the three pictures of the run, and none of EVIL


def test_the_page_has_every_part(page):
    headings = re.findall(r"<h[123](?: id=\S+)?>(.*?)</h[123]>", page)
    for part in (
        *("Figures", "Accuracy against the worst class", "Recall over class frequency", "Training"),
        *("Recall of many, medium and few classes", "Every row against every objective", "Samples"),
        *("Analyses", "Curvature of each class"),
        *("Baselines without training", "If the test set were long-tailed", "Not used"),
        *("Where each row comes from", "Claimed and measured"),
    ):
        assert part in headings
    assert "protocol &amp; more" in page
    assert "config.yaml" in page
    pictures = re.findall(r"data:image/png;base64,([^\"]+)\" alt=\"([^\"]+)", page)
    assert [name.rpartition(": ")[2] for _, name in pictures] == [
        "samples/last",
        "analysis/hessian",
        "traces",
    ]
    assert base64.b64decode(pictures[0][0]).startswith(b"\x89PNG")
    assert "broken/record.json" in page
    assert "hessian.csv" in page
    assert "analysis/rank.json" in page


def test_links_within_the_page_lead_somewhere(page):
    targets = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(links) > 8
    assert set(links) <= targets


def test_curves_that_cannot_be_read_are_left_out(make_run, tmp_path):
    for name, curves in (("a", b"\xff\x00,\n\xfe"), ("b", b"epoch,val/accuracy\nx,y\n")):
        (make_run(name) / "metrics.csv").write_bytes(curves)
    page = report.html(leaderboard.build(results.of_folder(tmp_path / "runs")), [])
    assert "part of the training" not in page


def test_the_same_records_give_the_same_page(make_run, tmp_path):
    make_run("ce", 0)
    pages = {
        report.html(leaderboard.build(results.of_folder(tmp_path / "runs")), []) for _ in range(2)
    }
    assert len(pages) == 1


def test_many_rows_and_classes_are_drawn_in_groups(make_run, tmp_path):
    for n in range(12):
        make_run(f"row{n:02}", 0)
    page = report.html(leaderboard.build(results.of_folder(tmp_path / "runs")), [])
    parsed(page)
    assert "2 more rows" in page
    assert page.count('class="series c0"') > 1
    for figure in ("Accuracy against the worst class", "Recall over class frequency"):
        drawn = page.partition(figure)[2].partition("</figure>")[0]
        assert drawn.count('class="series rest"') == 2


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-2, 100), (12.3, 998)])
def test_ticks_are_round_and_inside(low, high):
    collected = figures.ticks(low, high)
    assert 2 <= len(collected) <= 7
    assert low <= min(collected)
    assert max(collected) <= high
    steps = {round(b - a, 9) for a, b in pairwise(collected)}
    assert len(steps) == 1


def test_the_front_is_what_no_other_beats():
    points = [(1, 5), (3, 3), (2, 2), (5, 1), (3, 2)]
    assert [points[n] for n in figures.front_of(points)] == [(1, 5), (3, 3), (5, 1)]


def in_browser(path, *options):
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"]
    words += [f"--user-data-dir={path.parent / 'browser'}", *options, path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@needs_browser
def test_the_page_works_in_a_browser(page, tmp_path):
    """Sorting by a click, no script error, no attack that ran, a picture on a phone's screen."""
    click = (
        "<script>const heads = [...document.querySelector('table').tHead.rows[0].cells];"
        "heads.find((h) => h.textContent.startsWith('min recall')).querySelector('button').click();"
        "document.body.dataset.order = [...document.querySelector('table').tBodies[0].rows]"
        ".map((r) => r.dataset.row.slice(0, 2)).join();"
        "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;</script>"
    )
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", click + "</body>"))
    shown = in_browser(path, "--dump-dom", "--window-size=500,900")
    assert "CONSOLE" not in shown.stderr
    assert "owned" not in re.search(r"<title>(.*?)</title>", shown.stdout)[1]
    order = re.search(r'data-order="([^"]*)"', shown.stdout)[1].replace("&lt;", "<").split(",")
    assert order[0] == "vs"  # the best min recall first
    assert len(order) == 3
    assert 'data-wide="false"' in shown.stdout
    picture = tmp_path / "phone.png"
    in_browser(path, f"--screenshot={picture}", "--window-size=500,900", "--hide-scrollbars")
    with Image.open(picture) as image:
        assert image.size == (500, 900)
        assert len(image.convert("RGB").getcolors(10**6)) > 50
