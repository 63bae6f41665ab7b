"""A small MCP server on stdin and stdout: one tool, ``exec``, that takes an intent.

Knows sandboxes and JSON-RPC; it must not know engines, programs or HTTP.
"""

from agentrt.mcp.server import McpServer
from agentrt.mcp.tool import EXEC_TOOL, run_exec

__all__ = ["EXEC_TOOL", "McpServer", "run_exec"]
