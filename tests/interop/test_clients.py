"""Clients that others wrote, in an environment of their own (`make test-interop` makes it), against a real server.

openai with its strict validation of every field, langchain-openai, litellm, lm-eval and schemathesis. Each runs as a
process; what it found is judged here, by the model itself where tokens are concerned.
"""

import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
import torch

from deepseek_v3.engine.generate import generate
from deepseek_v3.model.transformer import DeepseekV3
from tests.engine.test_grammar import random_schema
from tests.serving.serving_harness import run_server
from tests.serving.tool_form import BEGIN, END, new_form, train_with_tools
from tests.tiny import tiny_config

HERE = Path(__file__).parent
PEERS = HERE / ".clients" / "bin"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not (PEERS / "st").exists(), reason="the clients are not installed here: make test-interop"),
]
KEY = "sk-a-key-of-some-length-0123456789"
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "50"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_with_tools(324)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(5)
    return DeepseekV3(tiny_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024)).eval()


@pytest.fixture(scope="module")
def server(model, tokenizer):
    with run_server(model, tokenizer, max_rows=4, queue=60, api_key=(KEY,)) as running:
        running.headers["authorization"] = f"Bearer {KEY}"
        yield running
        assert running.wait_until(lambda: running.worker.load == 0)
        assert running.blocks_held() == 0


def call(folder: Path, *words: str, seconds: float = 900, **environment: str) -> subprocess.CompletedProcess:
    """Run a program of the clients' environment."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **environment}
    command = [str(PEERS / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=own, cwd=folder)


def speak(server, folder: Path, do: str, **more) -> dict:
    """Let real_clients.py do a job; every failure is shown."""
    job = {"url": f"http://{server.host}:{server.port}/v1", "key": KEY, "seed": 19, "count": 300, "do": do, **more}
    (folder / "job.json").write_text(json.dumps(job))
    run = call(folder, "python", str(HERE / "real_clients.py"), "job.json", "found.json")
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    shown = "\n\n".join(found["failures"][:5])
    assert not found["failures"], f"{len(found['failures'])} of {found['done']} failed:\n{shown}"
    return found["found"]


def check_errors(found: dict, long_kinds: str, key_kinds: str) -> None:
    assert long_kinds in found["too long"]["kinds"], found["too long"]
    assert "This model's maximum context length is 1024 tokens" in found["too long"]["words"]
    assert key_kinds in found["wrong key"]["kinds"], found["wrong key"]
    assert "Incorrect API key provided" in found["wrong key"]["words"]
    assert found["wrong key"]["status_code"] == 401


def test_openai_with_strict_validation_is_served_300_combinations_and_its_helpers(server, tmp_path):
    found = speak(server, tmp_path, "openai")
    assert found["models"] == ["tiny"]
    check_errors(found, "BadRequestError", "AuthenticationError")
    codes = {name: (error["status_code"], error["code"]) for name, error in found.items() if name != "models"}
    assert codes == {
        "too long": (400, "context_length_exceeded"),
        "too many tokens": (400, "context_length_exceeded"),
        "wrong key": (401, "invalid_api_key"),
        "no such model": (404, "model_not_found"),
        "out of bounds": (400, None),
        "responses": (404, "unknown_url"),
    }


def test_langchain_is_served_300_combinations(server, tmp_path):
    found = speak(server, tmp_path, "langchain")
    check_errors(found, "BadRequestError", "AuthenticationError")


def test_litellm_is_served_300_combinations(server, tmp_path):
    found = speak(server, tmp_path, "litellm")
    check_errors(found, "ContextWindowExceededError", "AuthenticationError")


def test_tools_are_called_and_answered_by_every_client(server, tmp_path):
    text = f"let me see{BEGIN}{new_form('weather', json.dumps({'city': 'Rome'}))}{END}"
    speak(server, tmp_path, "tools", regex=re.escape(text))


def test_200_of_200_outputs_under_bounded_schemas_validate(server, tmp_path):
    import jsonschema

    schemas = [random_schema(random.Random(seed)) for seed in range(200)]
    found = speak(server, tmp_path, "schemas", schemas=schemas)
    assert len(found["said"]) == 200
    for seed, text, finish in found["said"]:
        assert finish == "stop", (seed, text)
        jsonschema.validate(json.loads(text), schemas[seed])


# lm-eval: a task file of our own, judged by the model itself

TASKS = {
    "choose": """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc}]
""",
    "continue": """
task: continue
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 11, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
""",
}


def ask_lm_eval(server, tokenizer, folder: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """Let lm-eval ask both tasks; return our documents and what it logged of every sample."""
    luck = random.Random(4)
    words = ["the", "quick", "brown", "fox", "jumps", "héllo", "wörld", "你好世界", "🙂🙃", "and", "again"]
    docs = [
        {
            "question": " ".join(luck.choices(words, k=luck.randint(1, 6))),
            "choices": [" ".join(luck.choices(words, k=luck.randint(1, 3))) for _ in range(3)],
            "answer": luck.randrange(3),
        }
        for _ in range(20)
    ]
    (folder / "tasks").mkdir()
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    for name, text in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "docs.jsonl")))
    tokenizer.save(folder / "tokenizer")
    url = f"http://{server.host}:{server.port}/v1/completions"
    settings = f"model=tiny,base_url={url},tokenizer={folder / 'tokenizer'},num_concurrent=2,max_length=1024"
    run = call(
        folder, "lm_eval", "run", "--model", "local-completions", "--model_args", settings, "--include_path", "tasks",
        "--tasks", ",".join(TASKS), "--log_samples", "--output_path", "out", "--batch_size", "4", OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    logged = {name: next((folder / "out").rglob(f"samples_{name}_*.jsonl")).read_text() for name in TASKS}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in logged.items()}
    return docs, {name: sorted(found, key=lambda row: row["doc_id"]) for name, found in rows.items()}


def test_lm_eval_finds_the_models_own_likelihoods_and_greedy_texts(server, model, tokenizer, tmp_path):
    docs, found = ask_lm_eval(server, tokenizer, tmp_path)
    for doc, row in zip(docs, found["choose"], strict=True):
        exact = []
        for choice, said in zip(doc["choices"], row["filtered_resps"], strict=True):
            context, whole = (tokenizer.encode(text) for text in (doc["question"], f"{doc['question']} {choice}"))
            with torch.no_grad():
                table = model(torch.tensor([whole]))[0].log_softmax(-1)
            behind = range(len(context) - 1, len(whole) - 1)
            exact.append(sum(float(table[i, whole[i + 1]]) for i in behind))
            greedy = all(int(table[i].argmax()) == whole[i + 1] for i in behind)
            assert float(said[0]) == pytest.approx(exact[-1], abs=1e-3)
            assert str(said[1]) == str(greedy)
        right = max(range(3), key=exact.__getitem__) == doc["answer"]
        assert row["acc"] == float(right)
    for doc, row in zip(docs, found["continue"], strict=True):
        tokens = list(generate(model, tokenizer.encode(doc["question"]), max_new_tokens=11))
        assert row["resps"][0][0] == tokenizer.decode(tokens).split("\n\n")[0]


# schemathesis: everything that the schema allows, and what it does not

CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance,ignored_auth"


def test_schemathesis_finds_no_server_error_nothing_undocumented_and_no_way_around_the_key(server, tmp_path):
    """The schema as served, but for the model's name, without which every request would end at a 404."""
    status, schema = server.get("/openapi.json")
    assert status == 200
    for name in ("CompletionRequest", "ChatRequest"):
        schema["components"]["schemas"][name]["properties"]["model"] = {"const": "tiny"}
    (tmp_path / "openapi.json").write_text(json.dumps(schema))
    run = call(
        tmp_path, "st", "run", "openapi.json", "--url", f"http://{server.host}:{server.port}", "--checks", CHECKS,
        "--header", f"Authorization: Bearer {KEY}", "--max-examples", str(EXAMPLES), "--seed", "19", "--no-color",
        "--request-timeout", "60", seconds=max(3600, 9 * EXAMPLES),
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert server.get("/health")[0] == 200
    print(run.stdout[-3000:])
