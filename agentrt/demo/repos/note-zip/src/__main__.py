import sys

from notes.render import render

print(render(sys.argv[1] if len(sys.argv) > 1 else "friend"))
