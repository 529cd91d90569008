"""The page of samples: its parts, and what a mask gives in words."""

import numpy as np
import pytest

from vdt_jax.inference import page


def test_a_page_names_files_and_escapes_text(tmp_path):
    cards = page.cards([page.Card("a <b>", "c & d", "50% #1?.gif", ("given", "sample"))])
    page.write_page(tmp_path / "index.html", "T", "i", cards, page.table(["task"], [["predict"]]))
    text = (tmp_path / "index.html").read_text()
    assert "a &lt;b&gt;" in text and "c &amp; d" in text and 'src="50%25%20%231%3F.gif"' in text
    assert "<th>task</th>" in text and "<td>predict</td>" in text
    assert page.is_page(tmp_path / "index.html") and "http-equiv" not in text and "<script" not in text


def test_an_unfinished_page_reloads(tmp_path):
    page.write_page(tmp_path / "index.html", "T", "i", finished=False)
    assert 'http-equiv="refresh"' in (tmp_path / "index.html").read_text()


def test_the_chart_orders_values_and_names_the_best_baseline():
    chart = page.dot_chart({"Predict": {"model": 20.0, "copy": 10.0, "blend": 15.0}}, "model", "dB")
    assert "20.0 dB, +5.0 over blend (15.0)" in chart
    assert 'class="baseline" cx="5.36%"' in chart and 'class="baseline" cx="50.00%"' in chart
    assert 'class="model" cx="94.64%"' in chart
    assert page.dot_chart({"Generate": {"model": 9.0}}, "model", "dB").count("<circle") == 1


@pytest.mark.parametrize(
    ("generated", "text"),
    [
        ([0, 0, 0, 1], "frames 0-2 of 4 given"),
        ([1, 0, 1, 1], "frame 1 of 4 given"),
        ([0, 1, 0, 0], "frames 0, 2-3 of 4 given"),
        ([1, 1, 1, 1], "nothing given"),
        ([0, 0.5, 0.5, 0], "frames 0, 3 of 4 and a part of frames 1-2 given"),
        ([0.5, 1, 1, 1], "a part of frame 0 given"),
    ],
)
def test_given_in_words(generated, text):
    mask = np.stack([np.arange(4).reshape(2, 2, 1) < 4 * share for share in generated])
    assert page.describe_given(mask.astype(np.float32)) == text
    assert page.describe_given(np.ones((2, 1, 1, 1)), label=True) == "only the class given"
