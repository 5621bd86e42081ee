"""SmolLM2-135M-Instruct through llama.cpp (xllamacpp), on one CPU thread."""

from typing import Any

from infra.weights import weight_label, weight_path

WEIGHT = "smollm2-135m"
CONTEXT_TOKENS = 1536


class SmolLm:
    """A `ChatModel` whose reply depends on its messages alone, with the system prompt kept in the KV cache.

    Left to itself, llama.cpp's server reuses as much of the previous call's cache as matches the new prompt, so the
    split of a prompt into batches, and with it the last bits of the logits and sometimes a word of the reply, depends
    on what was asked before. Here every call first evaluates the system prompt alone, which cuts the cache back to
    it, and then the whole prompt: the rest always goes in as one batch on the same cache.
    """

    name = "smollm2-135m"

    def __init__(self) -> None:
        self._server: Any = None
        self._cached = ""

    def weights(self) -> tuple[str, ...]:
        """The GGUF file's label."""
        return (weight_label(WEIGHT),)

    def setup(self) -> None:
        """Load the model; the server that comes with it listens on a free loopback port and is not used by us."""
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(weight_path(WEIGHT))
        params.n_ctx = CONTEXT_TOKENS
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_threads_http = 1
        params.cache_ram_mib = 0
        params.port = 0
        params.ui = False
        params.warmup = False
        params.verbosity = 0
        self._server = xllamacpp.Server(params)
        self._cached = ""

    def reply(self, system: str, user: str, max_tokens: int) -> str:
        """The reply, decoded greedily; cut at `max_tokens`. ValueError where the prompt does not fit."""
        prefix = f"<|im_start|>system\n{_plain(system)}<|im_end|>\n<|im_start|>user\n"
        if prefix != self._cached:
            self._complete(prefix, 0, cache=False)
            self._cached = prefix
        self._complete(prefix, 0, cache=True)
        prompt = f"{prefix}{_plain(user)}<|im_end|>\n<|im_start|>assistant\n"
        return self._complete(prompt, max_tokens, cache=True).strip()

    def _complete(self, prompt: str, max_tokens: int, *, cache: bool) -> str:
        assert self._server is not None, "setup() comes first"
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": max_tokens,
                "temperature": 0,
                "top_k": 1,
                "seed": 0,
                "cache_prompt": cache,
                "stop": ["<|im_end|>"],
                "id_slot": 0,
            }
        )
        if "choices" not in answer:
            raise ValueError(f"{self.name} refused a prompt of {len(prompt)} characters: {answer}")
        return str(answer["choices"][0]["text"])


def _plain(text: str) -> str:
    """Text without the marks of the chat template, so that no message can end its own turn."""
    return text.replace("<|", "< |")
