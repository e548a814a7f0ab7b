"""The explorer's model in Chromium against the package: what Node computes a browser computes too."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
sys.path.insert(0, str(Path(__file__).parent.parent / "serving"))
from browser import CHROMIUM, Browser, answering
from tiny_checkpoints import V3, YARN, random_model
from twenty_texts import TEXTS

from deepseek_v3.commands import explore
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.generate import generate
from deepseek_v3.weights.save import save_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
READ = """(async () => {
  const {loadModel} = await import('/model/load.js'), {fetchFile} = await import('/model/source.js');
  const model = await loadModel(fetchFile);
  return TEXTS.map((text) => {
    const ids = model.tokenizer.encode(text), {logits, trace} = model.read(ids, {trace: true});
    const writer = model.writer(ids, {drafts: 2}), chosen = trace.layers.map(({routing}) => routing?.chosen ?? null);
    while (writer.ids.length < ids.length + 12) writer.step();
    return {ids, logits: logits.map((row) => Array.from(row)), chosen, written: writer.ids.slice(ids.length)};
  });
})()"""


@torch.no_grad()
def test_the_model_in_the_page_is_the_package(tmp_path):
    tokenizer = Tokenizer.train(TEXTS, 397)
    config = {**V3, "rope_scaling": YARN, "num_nextn_predict_layers": 2, "max_position_embeddings": 640}
    model = random_model(config, vocab_size=tokenizer.vocab_size)
    save_model(model, tmp_path / "model", tokenizer)
    server = explore.open_server(explore.pages_of(explore.explorer_files(), tmp_path / "model"), 0)
    with answering(server) as address, Browser() as browser:
        browser.call("Page.navigate", url=address)
        browser.wait("document.body?.dataset.ready === 'true'")
        found = browser.run(READ.replace("TEXTS", json.dumps(TEXTS)))
    for text, read in zip(TEXTS, found):
        assert read["ids"] == tokenizer.encode(text)
        ours = model(torch.tensor([read["ids"]]))[0].numpy()
        assert np.abs(ours - np.array(read["logits"])).max() <= 1e-4
        assert read["written"][:12] == list(generate(model, read["ids"], max_new_tokens=12, stop_tokens=()))
