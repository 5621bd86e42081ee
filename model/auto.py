"""Makes the Auto classes of transformers know VideoRefer; importing this module is all, no remote code is needed.

After `import model.auto` a saved folder loads with `AutoConfig`, `AutoProcessor` and `AutoModelForImageTextToText`.
That last one stands for models that read pictures and text and write text, frames included. `AutoModelForCausalLM` is
left alone: who asks for it expects a network of text only, whose `generate` gives the prompt back too. `AutoModel`
means a network without a head, which there is none of here.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from model.configuration import VideoReferConfig
from model.modeling import VideoReferForConditionalGeneration
from model.processing import VideoReferProcessor

AutoConfig.register(VideoReferConfig.model_type, VideoReferConfig, exist_ok=True)
AutoModelForImageTextToText.register(VideoReferConfig, VideoReferForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VideoReferConfig, VideoReferProcessor, exist_ok=True)
