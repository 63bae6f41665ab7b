"""The demo: coding agents at work as programs on one machine, judged by their repositories' tests.

``repos`` holds small repositories of our own, each with a bug and tests that fail because of it;
``recordings`` holds one recorded agent session for each. A session is played on a runtime: its
recorded outputs are forced through the engine, its commands run for real in a sandbox. This package
knows the runtime and the sandboxes by their interfaces only, and nothing of models or terminals.
"""
