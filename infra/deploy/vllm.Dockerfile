# vLLM as Compose and the pods run it: without root, and told what runs tell the servers that they start themselves
# (infra/vllm); further arguments come behind those here. An image of its own, as vLLM wants other versions than Prefect.
# It takes no files:
#   docker build --tag videorefer-vllm:0.1.0 - < infra/deploy/vllm.Dockerfile
FROM vllm/vllm-openai:v0.32.0

# upstream made this user and starts as root all the same; compiled kernels are cached in the home, so it must be theirs
USER 2000:0
RUN test -w "$HOME/.cache"

ENV HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1

# nothing from the checkpoint changes how it is sampled; under a schema that allows blanks anywhere, small models write
# them without end
ENTRYPOINT ["vllm", "serve", "--generation-config=vllm", "--structured-outputs-config.backend=xgrammar", "--structured-outputs-config.disable_any_whitespace=true"]
