"""The page: what stands in it, and how it behaves in a real browser."""

import re

import pytest

from hpclbfl.analysis.measure.report import make_report
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.page import page, provenance, write_page
from tests.analysis.browser import Browser, find_chromium
from tests.analysis.synthetic import make_run


def write(folder, path):
    frames = load(folder)
    write_page(path, make_report(frames))
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """X in none, 2, 4 with three seeds each, and a run of X = 8 that failed."""
    root = tmp_path_factory.mktemp("sweep")
    for factor in (1, 2, 4):
        for seed in range(3):
            run = root / "runs" / f"x{factor}-s{seed}"
            make_run(run, seed, float(factor), num_steps=60, evaluate_every=20, dynamic=factor == 4)
    make_run(root / "runs" / "x8-s0", 0, 8.0, num_steps=20, evaluate_every=20, state="failed")
    return root


@pytest.fixture(scope="module")
def html(sweep, tmp_path_factory):
    return write(sweep, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on the path: the page is not tried in a browser (apt-get install chromium)")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def browser(chromium):
    chromium.errors.clear()
    chromium.requests.clear()
    return chromium


def rename_net(run, name):
    """As if its job had named another one; the checksum, its last line, goes."""
    lines = (run / "config.yaml").read_text().replace("resnet18", name).splitlines()
    assert lines[-1].startswith("# sha256 of the text above")
    (run / "config.yaml").write_text("\n".join(lines[:-1]) + "\n")


def opened(browser, path):
    browser.open(path)
    browser.wait_for("document.body && document.body.dataset.ready === '1'")
    return browser


DRAWN = "document.querySelector('#figure-learning_curves svg.marks').textContent"
SHOWN = "[...document.querySelectorAll('#arms tbody tr:not([hidden])')].map((row) => row.children[0].textContent)"


def click(browser, selector, count):
    """Click, and wait until all is drawn for the `count`th time."""
    browser.evaluate(f"document.querySelector({selector!r}).click()")
    browser.wait_for(f"document.body.dataset.ready === '{count}'")


@pytest.mark.slow
def test_page_in_a_browser(html, browser):
    opened(browser, html)
    assert browser.evaluate("document.querySelectorAll('figure .chart svg.marks').length") == 6
    assert browser.evaluate("document.querySelector('main').firstElementChild.id") == "failures"
    assert "optimizer steps" in browser.evaluate(DRAWN)

    # The filter filters tables, figures and their legends.
    assert browser.evaluate(SHOWN) == ["no scaler", "X=2", "X=4", "X=8"]
    x4 = "fieldset[data-key='0'] input[value='2']"
    assert browser.evaluate(f'document.querySelector("{x4}").parentElement.textContent.trim()') == "4"
    click(browser, x4, 2)
    assert browser.evaluate(SHOWN) == ["X=4"]
    drawn = browser.evaluate(DRAWN)
    assert ("X=4 (n=3)" in drawn, "X=2 (n=3)" in drawn) == (True, False)
    assert browser.evaluate("document.querySelector('#count').textContent") == "1 of 4 arms, 3 of 10 runs"
    assert browser.evaluate("document.querySelectorAll('#runs tbody tr:not([hidden])').length") == 3

    # So does the seed, which has lines of its own.
    browser.evaluate("document.querySelector('#seed').value = '1'")
    browser.evaluate("document.querySelector('#seed').dispatchEvent(new Event('change'))")
    browser.wait_for("document.body.dataset.ready === '3'")
    assert "X=4 (seed 1)" in browser.evaluate(DRAWN)
    assert browser.evaluate("document.querySelectorAll('#runs tbody tr:not([hidden])').length") == 1
    click(browser, "#filter button[type='reset']", 4)
    assert browser.evaluate(SHOWN) == ["no scaler", "X=2", "X=4", "X=8"]

    # The switch switches.
    for count, (axis, title) in enumerate([("samples", "samples processed"), ("seconds", "training time (s)")], 5):
        click(browser, f"input[name='axis'][value='{axis}']", count)
        assert title in browser.evaluate(DRAWN)

    # A click on a head sorts.
    browser.evaluate("document.querySelectorAll('#arms thead button')[2].click()")
    top1 = browser.evaluate(
        "[...document.querySelectorAll('#arms tbody tr')].map((r) => parseFloat(r.children[2].textContent))"
    )
    assert top1[:3] == sorted(top1[:3], reverse=True)
    assert top1[3] is None

    assert browser.errors == []
    assert [url for url in browser.requests if not re.match("(file|data|blob):", url)] == []


def test_page_of_one_run_in_a_browser(tmp_path, browser):
    make_run(tmp_path / "run", num_steps=30, evaluate_every=10)
    opened(browser, write(tmp_path / "run", tmp_path / "report.html"))
    assert browser.evaluate("document.querySelectorAll('figure:not([hidden]) .chart svg.marks').length") == 5
    assert browser.evaluate("document.querySelector('#filter')") is None
    assert browser.errors == []


def test_many_arms_in_a_browser(tmp_path, browser):
    for batch in range(1, 13):
        make_run(tmp_path / "runs" / f"b{batch}", batch=batch, num_steps=8, evaluate_every=4)
    opened(browser, write(tmp_path, tmp_path / "report.html"))
    assert browser.evaluate("document.querySelector('#drawn').textContent").startswith(
        "Lines are drawn for 8 of 12 arms"
    )
    assert browser.evaluate(DRAWN).count("(n=1)") == 8
    assert (
        browser.evaluate("document.querySelector('#figure-final_accuracy svg.marks').textContent").count("(n=1)") == 12
    )
    assert browser.errors == []


def test_tasks_and_unreadable_runs_in_a_browser(tmp_path, browser):
    for net in ("a", "b"):
        for factor in (1, 2):
            path = tmp_path / "runs" / f"{net}-x{factor}"
            make_run(path, factor=factor, num_steps=8, evaluate_every=4)
            rename_net(path, f"net_{net}")
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "config.yaml").write_text("a: [")
    opened(browser, write(tmp_path, tmp_path / "report.html"))
    heads = "[...document.querySelectorAll('#figure-learning_curves .task:not([hidden]) h4')].map((h) => h.textContent)"
    assert browser.evaluate(heads) == ["net_a", "net_b"]
    drawn = "[...document.querySelectorAll('#figure-learning_curves svg.marks')].map((svg) => svg.textContent)"
    assert ["net_b" in text for text in browser.evaluate(drawn)] == [False, True]
    assert browser.evaluate("document.querySelector('#count').textContent") == "4 of 4 arms, 5 of 5 runs"
    assert browser.evaluate("document.querySelectorAll('#runs tbody tr:not([hidden])').length") == 5
    click(browser, "fieldset[data-key='0'] input[value='1']", 2)
    assert browser.evaluate(heads) == ["net_b"]
    assert browser.evaluate("document.querySelector('#count').textContent") == "2 of 4 arms, 2 of 5 runs"
    shown = "[...document.querySelectorAll('#arms-2 tbody tr:not([hidden])')].map((r) => r.children[0].textContent)"
    assert browser.evaluate(shown) == ["net_b, no scaler", "net_b, X=2"]
    assert browser.errors == []


@pytest.mark.parametrize("width", [1600, 700, 400])
def test_figures_have_the_width_of_the_page(html, browser, width):
    browser.resize(width)
    opened(browser, html)
    measures = "c.querySelector('svg.marks').getBoundingClientRect().width, c.clientWidth, c.scrollWidth"
    widths = f"[...document.querySelectorAll('figure:not([hidden]) .chart')].map((c) => [{measures}])"
    found = browser.evaluate(widths)
    assert len(found) == 6
    for drawn, room, scrolled in found:
        assert room - 12 <= drawn <= room and scrolled == room
    assert max(room for _, room, _ in found) > width - 110
    # Nor does anything else make the page wider than the window.
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    # They follow the window.
    browser.resize(width - 60)
    browser.wait_for("document.body.dataset.ready === '2'")
    for drawn, room, _ in browser.evaluate(widths):
        assert room - 12 <= drawn <= room
    assert browser.errors == []


def test_long_labels_on_a_narrow_page(tmp_path, browser):
    for net in ("a" * 80, "宽" * 40):
        for factor in (1, 2):
            path = tmp_path / "runs" / f"{net[:20]}-{factor}"
            make_run(path, factor=factor, num_steps=8, evaluate_every=4)
            rename_net(path, net)
    browser.resize(400)
    opened(browser, write(tmp_path, tmp_path / "report.html"))
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate("document.querySelectorAll('figure .chart svg.marks').length") >= 8
    scrolled = "[...document.querySelectorAll('figure .chart')].filter((c) => c.scrollWidth > c.clientWidth + 1).length"
    assert browser.evaluate(scrolled) == 0
    assert browser.errors == []


def test_page_needs_no_network(html):
    text = html.read_text()
    outside = set(re.findall(r"""(?:src|href)=["']([^"']*)""", text.partition("<script")[0]))
    assert outside == {"data:,"}
    assert "default-src 'none'" in text
    assert len(text) < 3e6


def test_failures_stand_first_and_only_differences_are_shown(html):
    text = html.read_text().partition('<script type="application/json"')[0]
    assert text.index("CUDA out of memory") < text.index("What was run") < text.index("Results")
    assert "1 of 10 runs failed. They are in no mean." in text
    assert "gradients.scaler.factor" in text
    assert "optimizer.momentum" not in text
    assert "0 (1 run left out)" in text


def test_texts_are_escaped(tmp_path):
    make_run(tmp_path / "a<b>&", num_steps=4, evaluate_every=2)
    (tmp_path / "a<b>&" / "status.json").write_text('{"state": "failed", "error": "</script><b>bold"}')
    (tmp_path / "a<b>&" / "DONE.json").unlink()
    frames = load(tmp_path)
    text = page(make_report(frames))
    assert "<b>" not in text.partition("<script")[0]
    assert text.count("</script>") == 3


def test_empty_frames_give_a_page(tmp_path):
    frames = load(tmp_path)
    assert "0 runs" in page(make_report(frames))


def test_provenance_counts_values(sweep):
    runs = load(sweep).runs
    found = dict(provenance(runs.with_columns(host=runs["seed"].cast(str))))
    assert found["host"] == "0 (4), 1 (3), 2 (3)"
    assert found["git commit"] == "0123456789ab"
    assert found["started (UTC)"] == "2026-01-05T06:00:00+00:00"
