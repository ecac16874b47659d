"""Text files as people have them: their line ends, marks and blanks."""

import pytest

from phase8.errors import ConfigError
from phase8.model.text import read_documents, token_sequences

PARAGRAPHS = [f"The goose number {n}\neats grain in Brindle." for n in range(50)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028"])
@pytest.mark.parametrize("blank", ["", " \t ", "\f", "\u3000", "\xa0", "\u200b", "\u2003\u200d", "\u2060", "\ufeff"])
def test_fifty_paragraphs_are_fifty_documents(tmp_path, end, blank):
    path = tmp_path / "text.txt"
    text = f"\n{blank}\n".join(PARAGRAPHS) + f"\n{blank}\n{blank}\n"
    path.write_bytes(text.replace("\n", end).encode())
    assert read_documents(str(path), "") == PARAGRAPHS


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n\xef\xbb\xbftwo words\r\n")  # two such files laid end to end
    assert read_documents(str(path), "") == ["one", "two words"]


def test_a_mark_at_the_head_of_a_line_is_none_whatever_ended_the_line_before(tmp_path):
    path = tmp_path / "text.txt"
    for end in ("\r", "\x85", "\u2028"):
        path.write_bytes(f"one{end}{end}\ufefftwo".encode())
        assert read_documents(str(path), "") == ["one", "two"]


def test_unicodes_paragraph_separator_parts_documents(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\u2029".join(PARAGRAPHS).encode())
    assert read_documents(str(path), "") == PARAGRAPHS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "latin-1"])
def test_other_encodings_are_refused_by_name_where_they_show_it(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes("Text, plain.\n\ntéxt".encode(encoding))
    with pytest.raises(ConfigError, match={"utf-16": "UTF-16", "utf-32": "UTF-32"}.get(encoding, "UTF-8")):
        read_documents(str(path), "save it as UTF-8")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\t\r\n"])
def test_a_file_without_text_is_refused(tmp_path, content):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no text"):
        read_documents(str(path), "")


def test_what_was_read_is_told(tmp_path, tiny_tokenizer):
    path = tmp_path / "text.txt"
    path.write_bytes("\r\n\r\n".join(PARAGRAPHS).encode())
    told = []
    tokens = token_sequences(
        tiny_tokenizer, sequences=3, length=10, seed=0, path=str(path), on_read=lambda *counts: told.append(counts)
    )
    assert tokens.shape == (3, 10)
    assert told == [(50, sum(len(tiny_tokenizer(p.replace("\r\n", "\n"))["input_ids"]) for p in PARAGRAPHS))]


def test_too_little_text_says_how_much_there_is(tmp_path, tiny_tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(ConfigError, match="8 tokens in 2 documents, 1,000 are needed"):
        token_sequences(tiny_tokenizer, sequences=10, length=100, seed=0, path=str(path))
