"""Incremental detokenisation: whole characters only, and together what decoding all gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from agentrt.engine.detokenize import WindowDetokenizer
from agentrt.engine.tokens import Detokenizer, Tokenizer

REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model_dir)


@pytest.fixture(scope="module")
def backend(tiny_model_dir: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))


def pieces(stream: Detokenizer, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    """Push ``ids`` in lumps of the sizes ``cuts``, then the rest, then flush."""
    out, place = [], 0
    for cut in cuts:
        out.append(stream.push(ids[place : place + cut]))
        place += cut
    out.append(stream.push(ids[place:]))
    return [*out, stream.flush()]


cuts = st.lists(st.integers(0, 4), max_size=40)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(text=st.text(), lumps=cuts)
def test_text_comes_back_whole(tokenizer: Tokenizer, text: str, lumps: list[int]) -> None:
    ids = tokenizer.encode(text)
    parts = pieces(tokenizer.stream(), ids, lumps)
    assert "".join(parts) == tokenizer.decode(ids) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@unhurried
@given(ids=st.lists(st.integers(0, 600), max_size=60), lumps=cuts)
def test_any_tokens_equal_decoding_them_all(
    tokenizer: Tokenizer, backend: tokenizers.Tokenizer, ids: list[int], lumps: list[int]
) -> None:
    expected = backend.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == expected
    assert "".join(pieces(tokenizer.stream(), ids, lumps)) == expected


def test_a_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦜")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["🦜"]
    assert stream.flush() == ""


def test_an_incomplete_end_becomes_one_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 🦜")[:-1]
    stream = tokenizer.stream()
    assert stream.push(ids) == "ok "
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""


def test_special_and_unknown_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("<|im_start|>hi<|im_end|>"), 10_000, -1]
    assert tokenizer.decode(ids) == "hi"
    assert "".join(pieces(tokenizer.stream(), ids, [1] * 9)) == "hi"


def test_added_tokens_are_spelled_as_their_text(
    backend: tokenizers.Tokenizer, tiny_model_dir: Path
) -> None:
    own = tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    own.add_tokens([AddedToken("<think> é"), AddedToken("plain")])
    tokenizer = Tokenizer(own, name="added")
    ids = tokenizer.encode("a<think> é b plain")
    assert max(ids) >= backend.get_vocab_size()
    assert tokenizer.decode(ids) == own.decode(ids) == "a<think> é b plain"


def fallback_backend() -> tokenizers.Tokenizer:
    """Return a vocabulary of the other kind: spaces as U+2581, unknown characters as bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc▁.", "▁a", "▁ab"]
    model = models.BPE(
        vocab={word: place for place, word in enumerate(words)},
        merges=[("▁", "a"), ("▁a", "b")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


@unhurried
@given(text=st.text("abc .é🦜"), lumps=cuts)
def test_other_vocabularies_stream_the_same_text(text: str, lumps: list[int]) -> None:
    tokenizer = Tokenizer(fallback_backend(), name="fallback")
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert isinstance(stream, WindowDetokenizer)
    parts = pieces(stream, ids, lumps)
    assert "".join(parts) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in part for part in parts)


def test_other_vocabularies_flush_what_is_incomplete() -> None:
    tokenizer = Tokenizer(fallback_backend(), name="fallback")
    ids = tokenizer.encode("ab 🦜")[:-1]
    stream = tokenizer.stream()
    assert "".join(stream.push([i]) for i in ids) == "ab "
    assert stream.flush() == tokenizer.decode(ids)[3:]
    assert REPLACEMENT in tokenizer.decode(ids)
