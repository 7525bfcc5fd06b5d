"""Models of language in the layouts of Hugging Face's transformers: read from their files, with the same logits.

    from fundl.interop import hugging_face

    model = hugging_face.load("gpt2")  # a folder with config.json and model.safetensors

| model_type in config.json | what it becomes |
| --- | --- |
| gpt2 | `GPT2`: learned positions, LayerNorm, GELU, a tied embedding |
| llama, mistral, qwen2 | `Llama`: rotary positions, RMSNorm, SwiGLU, grouped heads, a window |

Nothing of transformers is needed, and nothing of the folder is run: files are numbers and names.
"""

from fundl.interop.hugging_face.files import load, save
from fundl.interop.hugging_face.gpt2 import GPT2
from fundl.interop.hugging_face.llama import Llama

__all__ = ["GPT2", "Llama", "load", "save"]
