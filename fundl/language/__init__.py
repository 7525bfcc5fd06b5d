"""Models of language: run a token at a time with a cache, and let write.

logits, cache = language.prefill(model, prompt, length=1024)
logits, cache = language.step(model, token, cache)
tokens = language.generate(key(0), model, prompt, 100, temperature=0.8, top_p=0.95)
"""

from fundl._common.place import Place as Place
from fundl.language.caches import Cache as Cache
from fundl.language.caches import empty_cache as empty_cache
from fundl.language.caches import prefill as prefill
from fundl.language.caches import step as step
from fundl.language.generating import generate as generate
