"""all-MiniLM-L6-v2, quantised to 8 bits: sentences to vectors of 384."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.weights import weight_label, weight_path

TOKENIZER_PATH = Path(__file__).parent / "assets" / "minilm-tokenizer.json"
MAX_TOKENS = 128
"""What the model was trained with (its `sentence_bert_config.json`); longer texts are cut."""
BATCH_TEXTS = 64


class MiniLm:
    """Text embedder: the mean of the last hidden states under the attention mask, scaled to length 1.

    That is the pooling of the published sentence-transformers model.
    """

    name = "minilm"

    def __init__(self) -> None:
        self._session: Any = None
        self._tokenizer: Any = None

    def weights(self) -> tuple[str, ...]:
        """The one weight file."""
        return (weight_label("minilm-int8"),)

    def setup(self) -> None:
        """Open the model on one thread."""
        import onnxruntime as ort
        from tokenizers import Tokenizer

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(weight_path("minilm-int8")), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER_PATH))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(texts), 384), each row of length 1; a text's vector does not depend on the texts beside it."""
        rows = [self._embed_batch(texts[i : i + BATCH_TEXTS]) for i in range(0, len(texts), BATCH_TEXTS)]
        return np.concatenate(rows) if rows else np.zeros((0, 384), np.float32)

    def _embed_batch(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch(list(texts))
        feeds = {
            "input_ids": np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
            "token_type_ids": np.array([e.type_ids for e in encodings], np.int64),
        }
        hidden = self._session.run(None, feeds)[0]
        mask = feeds["attention_mask"][:, :, None].astype(np.float32)
        pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), dtype=np.float32)
