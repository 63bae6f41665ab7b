"""What ``import agentrt`` promises: light, flat, documented."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import agentrt
from agentrt import errors

HEAVY = ("torch", "docker", "fastapi", "uvicorn", "numpy", "tokenizers", "transformers", "pydantic")


@pytest.mark.parametrize("module", ["agentrt", "agentrt.scheduling", "agentrt.errors"])
def test_import_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_command_line_loads_neither_torch_nor_docker_for_its_help():
    code = (
        "import sys\nfrom agentrt.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('loaded', [m for m in ('torch', 'docker', 'fastapi') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.rstrip().endswith("loaded []")


@pytest.mark.parametrize("name", agentrt.__all__)
def test_every_export_is_importable_and_documented(name):
    thing = getattr(agentrt, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, method in vars(thing).items():
            if inspect.isfunction(method) and not attribute.startswith("_"):
                assert method.__doc__, f"{name}.{attribute} has no docstring"
                hints = inspect.signature(method)
                assert hints.return_annotation is not inspect.Signature.empty


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = agentrt.nonesuch
    assert "Runtime" in dir(agentrt)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_carries_a_remedy(name):
    kind = getattr(errors, name)
    error = kind("It broke.", remedy="Do this.")
    assert isinstance(error, errors.AgentRTError)
    assert str(error) == "It broke. Do this."


def test_errors_are_also_the_builtin_that_callers_expect():
    assert issubclass(errors.ToolTimeout, TimeoutError)
    assert issubclass(errors.InvalidRequest, ValueError)
    assert issubclass(errors.ToolOutOfMemory, MemoryError)
    assert "report" in errors.InternalError("x").remedy
