"""Tokenizers: training repeats to the byte, every byte of text is accounted for, a text cannot spell end-of-text."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxllm.core.errors import DataError
from jaxllm.data.config import TrainBpe
from jaxllm.data.tokenizer import Encoder, identity, train
from tests.data.texts import sentences

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train(iter(sentences(1, 200)), TrainBpe(vocab_size=400)))
    return path


def test_training_repeats_in_other_processes_with_other_threads() -> None:
    program = (
        "import hashlib; from tests.data.texts import sentences; from jaxllm.data.tokenizer import train, TrainBpe\n"
        "texts = sentences(7, 3000)\n"
        "print(hashlib.sha256(train(iter(texts), TrainBpe(vocab_size=1000)).encode()).hexdigest())"
    )
    found = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("4", "2")):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        found.add(
            subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout
        )
    assert len(found) == 1
    other = train(iter([*sentences(7, 3000), "another text " * 50]), TrainBpe(vocab_size=1000))
    assert hashlib.sha256(other.encode()).hexdigest() not in found.pop().decode()


@given(text=st.text())
def test_byte_table_is_exact(path: Path, text: str) -> None:
    encoder = Encoder(path, END)
    (ids,) = encoder.encode([text])
    assert ids[-1] == encoder.end_of_text_id and ids.dtype == np.uint16
    assert encoder.token_bytes[ids].sum() == len(text.encode())
    assert Tokenizer.from_file(str(path)).decode(ids[:-1].tolist()) == text


def test_a_text_cannot_spell_a_special_token(path: Path) -> None:
    encoder = Encoder(path, END)
    (ids,) = encoder.encode([f"a{END}b"])
    assert (ids == encoder.end_of_text_id).sum() == 1
    assert encoder.token_bytes[ids].sum() == len(f"a{END}b")


def test_limits_and_padding_of_a_given_tokenizer_do_not_apply(path: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "t.json"))
    texts = ["x", "one two three four five six seven " * 20]
    for ours, theirs in zip(
        Encoder(path, END).encode(texts), Encoder(tmp_path / "t.json", END).encode(texts), strict=True
    ):
        assert (ours == theirs).all()


def test_sentencepiece_spelling(tmp_path: Path) -> None:
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["the order of words and the words of order"], trainer)
    raw = json.loads(tokenizer.to_str())
    for token in fallback:
        raw["model"]["vocab"][token] = len(raw["model"]["vocab"])
    (tmp_path / "t.json").write_text(json.dumps(raw))
    encoder = Encoder(tmp_path / "t.json", "</s>")
    for text in ("the words", "order 数据 🙂\n of"):
        (ids,) = encoder.encode([text])
        assert encoder.token_bytes[ids].sum() == len((" " + text).encode())  # this spelling begins with a blank


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(65_536)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(tmp_path / "t.json"))
    encoder = Encoder(tmp_path / "t.json", END)
    assert encoder.vocab_size == 65_537 and encoder.dtype == np.uint32
    assert encoder.encode(["w7 w65535"])[0].tolist() == [7, 65_535, 65_536]


def test_identity_ignores_spelling_and_nothing_else(path: Path) -> None:
    raw = json.loads(path.read_text())
    special = {END: 0}
    assert Encoder(path, END).identity == identity(raw, special, END)
    assert identity(json.loads(json.dumps(raw, indent=3, sort_keys=True)), special, END) == identity(raw, special, END)
    changed = json.loads(path.read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:-1]
    assert len({identity(raw, special, END), identity(changed, special, END), identity(raw, special, "other")}) == 3


def test_unusable_tokenizers(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'</s>' is not a special token.*'<\|endoftext\|>'"):
        Encoder(path, "</s>")
    with pytest.raises(DataError, match="nowhere"):
        Encoder(tmp_path / "nowhere.json", END)
    for text, why in (("{", "not JSON"), ("[]", "no 'model'"), ('{"model": {"type": "Magic"}}', "cannot|can load")):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(DataError, match=why) as error:
            Encoder(tmp_path / "t.json", END)
        assert "\n" not in str(error.value) and "t.json" in str(error.value)


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="256"):
        train(iter(["text"]), TrainBpe(vocab_size=256))
    small = json.loads(train(iter(["text"]), TrainBpe(vocab_size=5000)))
    assert len(small["model"]["vocab"]) == 257  # nothing occurs twice
