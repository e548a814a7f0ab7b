"""Five questions of a reader who knows chapter 01, answered by the page in words (explorer/README.md)."""

import pytest

pytestmark = pytest.mark.slow
TEXT, SETTLE = "def read_lines(path):\n    return", "settle()"


def test_five_questions_of_a_reader_are_answered_in_words(page, folder):
    """Which experts read this word; the cache at 32k; how much a head reads; why drafts fell; where an error goes."""
    from deepseek_v3.config import ModelConfig

    move = "(node => { node.value = %s; say(node, 'input') })(document.querySelector('%s input[type=range]'))"
    text = "document.querySelector('%s').textContent"
    shown = page("routing", TEXT, token=3, layer=1)
    picked = shown.run(
        "[...document.querySelectorAll('[data-part=\"routing.token\"] .bar-name')].map(n => n.textContent)"
    )
    told = shown.run(text % '[data-part="routing.token"] .verdict')
    assert ", ".join(name.removeprefix("expert ") for name in picked if name.startswith("expert ")) in told
    shown = page("attention", TEXT, token=4, key=2)
    shown.run(move % (15, '[data-part="attention.cache"]'))
    shown.run(SETTLE)
    config = ModelConfig.from_json(folder / "config.json")
    n_bytes = 32768 * 2 * config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
    assert f"{n_bytes / 2**20:.2f} MiB" in shown.run(text % '[data-part="attention.cache"] .verdict')
    assert "%" in shown.run("[...document.querySelectorAll('.maps .readout')].at(-1).textContent")
    shown = page("prediction", TEXT)
    for _ in range(12):
        shown.run("document.querySelectorAll('[data-part=\"prediction.writing\"] .act')[1].click()")
    struck = shown.run("[...document.querySelectorAll('.paper .fell')].length")
    assert shown.run("document.querySelectorAll('.fallen li').length") == min(4, struck) > 0
    assert " fell; in its place the model wrote " in shown.run(text % ".fallen li")
    assert shown.run(text % ".falls").startswith(f"The last {min(4, struck)} of {struck} ")
    assert "\n" not in shown.run("[...document.querySelectorAll('.paper .fell')].map(n => n.textContent).join('')")
    reach = "numbersOf('[data-part=\"fp8.matrix\"] .bar-number')"
    near, row, rest = page("fp8", TEXT, outlier=16, grain="tile", token=4, entry=9).run(reach)
    assert near > 2 * max(row, rest)
    near, row, rest = page("fp8", TEXT, outlier=16, grain="tensor", token=4, entry=9).run(reach)
    assert near < 1.5 * min(row, rest)


def test_a_fallen_line_end_breaks_no_line_and_an_end_that_stood_has_its_name(page):
    """The writer is made to draft a line end that falls and to write the end: neither may vanish from the paper."""
    shown = page("prediction", TEXT)
    shown.run(
        "import('./model/writer.js').then(({Writer}) => { Writer.prototype.step = function () {"
        " const {tokenizer, config} = this.model, [end] = tokenizer.encode('\\n');"
        " const [id] = [config.eos_token_id].flat();"
        " this.ids.push(id); const guesses = [{id: end, p: 0, q: {[end]: 1}, share: 0.00006}];"
        " return {accepted: [], rejected: [end], next: id, share: 0.5, cacheLength: 9, guesses, milliseconds: 1}; }; })"
    )
    shown.run("document.querySelectorAll('[data-part=\"prediction.writing\"] .act')[1].click()")
    assert shown.run("document.querySelector('.paper .fell').textContent") == "↵"
    assert shown.run("document.querySelector('.paper .own').textContent").startswith("‹")
    assert "(0.006 %) fell" in shown.run("document.querySelector('.fallen li').textContent")
