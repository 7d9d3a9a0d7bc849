"""The `bytes` tokenizer: one token a byte, with nothing to download. It saves and loads as any other does."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from worker.dialogue import CHATML

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"


def bytes_tokenizer() -> PreTrainedTokenizerBase:
    """Ids 0 to 255 are the bytes; 256 pads, 257 opens a turn, 258 ends a turn or a text (eos)."""
    # GPT-2's alphabet gives each byte a printable character; sorted by what byte it stands for.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    core = Tokenizer(models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    # Without merges a word is its bytes anyway. Cut into single characters: long words cost more than their length.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )
    core.add_special_tokens([PAD, TURN_START, TURN_END])
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer
