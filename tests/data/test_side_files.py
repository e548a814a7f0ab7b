"""A tokenizer and the files beside it: other names and numbers of its tokens, spelled tokens, bytes that stay."""

import json

import pytest
import tokenizers

from deepseek_v3.data.tokenizer import BOS, EOS, USER, Tokenizer, TokenizerError

TEXTS = ["ab cd the quick brown fox <tool_call> 1234\n"] * 7


def make_tokenizer(tmp_path, **renamed: str) -> Tokenizer:
    """One whose User and tool tokens are added but not special, as in the released file; some others renamed."""
    content = json.loads(Tokenizer.train(TEXTS, 300)._backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] != USER
    tool = {**content["added_tokens"][0], "id": 300, "content": "<tool_call>", "special": False}
    content["added_tokens"].append(tool)
    text = json.dumps(content, ensure_ascii=False)
    for old, new in renamed.items():
        text = text.replace({"bos": BOS, "eos": EOS}[old], new)
    (tmp_path / "tokenizer.json").write_text(text)
    return Tokenizer.from_file(tmp_path)


def write(folder, **files) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", [USER, "<tool_call>", BOS, f"a{USER}b", "x <tool_call></tool_call>"])
def test_text_that_spells_an_added_token_stays_text(tmp_path, name):
    """The library's own switch knows special tokens only: control below."""
    tokenizer = make_tokenizer(tmp_path)
    added = {token.content for token in tokenizer._backend.get_added_tokens_decoder().values()}
    ids = tokenizer.encode(name)
    assert not added & {tokenizer._backend.id_to_token(i) for i in ids}
    assert tokenizer.decode(ids) == name
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert added & set(backend.encode(name, add_special_tokens=False).tokens)
    assert tokenizer.encode(name, special=True) == backend.encode(name, add_special_tokens=False).ids


def test_text_stays_text_where_whole_words_need_no_merges(tmp_path):
    content = json.loads(Tokenizer.train(TEXTS, 300)._backend.to_str())
    content["model"] |= {"ignore_merges": True, "vocab": {**content["model"]["vocab"], "call": 300}}
    content["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
    }  # fmt: skip
    token = {**content["added_tokens"][0], "id": 300, "content": "call", "special": False}
    content["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.token_id("call") not in tokenizer.encode("call")
    assert tokenizer.decode(tokenizer.encode("call")) == "call"


def test_tokens_with_other_names_are_found_by_the_files_beside(tmp_path):
    make_tokenizer(tmp_path, bos="<s>", eos="</s>")
    write(tmp_path, config={"bos_token_id": 0, "eos_token_id": [1, 7]}, generation_config={"eos_token_id": [1, 9]})
    tokenizer = Tokenizer.from_file(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.stop_ids == (1, 7, 9)
    write(tmp_path, tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "<tool_call>"})
    tokenizer = Tokenizer.from_file(tmp_path)
    tool = tokenizer.token_id("<tool_call>")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, tool)
    assert tokenizer.stop_ids == (tool, 1, 7, 9)


def test_a_wrapped_config_names_the_tokens_too(tmp_path):
    make_tokenizer(tmp_path, bos="<s>", eos="</s>")
    write(tmp_path, config={"model_type": "kimi_k25", "text_config": {"bos_token_id": 3, "eos_token_id": 5}})
    tokenizer = Tokenizer.from_file(tmp_path)
    assert (tokenizer.bos_id, tokenizer.stop_ids) == (3, (5,))


def test_every_file_beside_comes_back_byte_for_byte(tmp_path):
    (tmp_path / "a").mkdir()
    make_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    write(tmp_path / "a", tokenizer_config={"add_bos_token": True, "model_max_length": 512}, special_tokens_map={})
    write(tmp_path / "a", generation_config={"temperature": 0.6})
    Tokenizer.from_file(tmp_path / "a").save(tmp_path / "b")
    before, after = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "ab")
    assert before == after


@pytest.mark.parametrize("text", ["[1]", "{", "\xff"])
def test_a_broken_file_beside_is_refused_by_name(tmp_path, text):
    make_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(TokenizerError, match=r"generation_config\.json"):
        Tokenizer.from_file(tmp_path)
