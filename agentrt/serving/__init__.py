"""The HTTP server: OpenAI's chat and completions over a runtime's programs.

It turns requests into turns of programs and turns into answers. It must not know how a turn is
scheduled or computed; it knows the runtime, its statistics and its streams.
"""
