"""What a browser makes of the page of `stones report`: nothing is loaded, no error, sorting and filtering work.

The tests stand below an `if`: they are there where a browser is, headless Chromium or one of its kin. What can be told
without one is told everywhere, by `test_report`, which reads the same page strictly.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from command_line import invoke
from html_page import Page, columns, rows

from stones_cli.status import Status

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell",
    "chromium-headless-shell",
)  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PROBE = """<script>
addEventListener("securitypolicyviolation", (event) => console.error("refused " + event.violatedDirective));
const table = document.querySelector("#overview table");
const button = (name) => Array.from(table.querySelectorAll("button")).find((each) => each.textContent === name);
const order = () => Array.from(table.tBodies[0].rows, (row) => row.hidden ? "-" : row.cells[0].textContent).join(" ");
const seen = [order()];
button("technique").click(); seen.push(order());
button("technique").click(); seen.push(order());
button("FLOPs forward").click(); seen.push(order());
const filter = document.querySelector("#overview input");
filter.value = "norm PIXEL"; filter.dispatchEvent(new Event("input")); seen.push(order());
const found = document.createElement("ol");
found.id = "probe";
found.append(...seen.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.dataset.wide = String(wide);
document.body.append(found);
</script></body>"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    assert invoke("report", "adax", "icnr", "svb", "pixel-norm", "-o", folder / "report.html").exit_code == Status.DONE
    return folder / "report.html"


def test_the_page_has_the_table_that_is_sorted(written):
    page = Page(written.read_text(encoding="utf-8"))
    (table,) = page.section("overview").find("table")
    assert table.attributes["class"] == "sortable"
    assert [row[0] for row in rows(table)] == ["adax", "icnr", "svb", "pixel-norm"]
    assert {"technique", "FLOPs forward"} <= set(columns(table))
    assert not page.find("button")  # which without JavaScript would do nothing


if BROWSER:

    def opened(file, folder, width):
        """The page as it stands after its scripts ran, and what the browser had to say."""
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom",
            "--enable-logging=stderr", f"--window-size={width},800", f"--user-data-dir={folder / 'browser'}",
            file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def test_a_browser_sorts_and_filters_and_has_nothing_to_complain_of(written, tmp_path):
        probing = tmp_path / "probing.html"
        probing.write_text(written.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
        dom, console = opened(probing, tmp_path, 360)
        assert console == []
        (found,) = re.findall(r'<ol id="probe"[^>]*>(.*)</ol>', dom)
        first, up, down, flops, filtered = re.findall("<li>(.*?)</li>", found)
        assert first == "adax icnr svb pixel-norm"
        assert up == "adax icnr pixel-norm svb"
        assert down == "svb pixel-norm icnr adax"
        assert sorted(flops.split()) == sorted(first.split())
        assert flops.index("adax") < flops.index("pixel-norm")  # 516,096 before 1,589,248, as numbers
        assert sorted(filtered.split()) == ["-", "-", "-", "pixel-norm"]

    def test_a_page_as_wide_as_a_telephone_scrolls_its_tables_and_not_itself(written, tmp_path):
        probing = tmp_path / "probing.html"
        probing.write_text(written.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
        dom, _ = opened(probing, tmp_path, 500)
        assert 'data-wide="0"' in dom

    def test_the_browser_would_say_so_if_something_were_loaded(written, tmp_path):
        bad = tmp_path / "bad.html"
        image = '<img src="https://example.invalid/x.png">'
        bad.write_text(written.read_text(encoding="utf-8").replace("<main", f"{image}<main", 1), encoding="utf-8")
        assert any("Content Security Policy" in line for line in opened(bad, tmp_path, 800)[1])
