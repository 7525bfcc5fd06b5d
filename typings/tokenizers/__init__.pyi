# What the example of language models uses of it.

class Encoding:
    ids: list[int]

class Tokenizer:
    @staticmethod
    def from_file(path: str) -> Tokenizer: ...
    def encode(self, text: str) -> Encoding: ...
    def decode(self, ids: list[int]) -> str: ...
