"""One port, every protocol: OpenAI's, Ollama's and Anthropic's HTTP on the paged engine.

``worker`` owns a model's engine on a thread of its own, ``manager`` loads and unloads models, ``app`` puts one guard in
front of all routes. A package a protocol: it translates requests and answers, and knows nothing of the others.
"""
