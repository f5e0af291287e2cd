"""`python -m tools.docs` writes the generated parts of docs/; `... check-site DIR` looks at a built site."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.docs.links import network_loads
from tools.docs.pages import ROOT, stale

if sys.argv[1:2] == ["check-site"]:
    loads = network_loads(Path(sys.argv[2]))
    sys.exit("\n".join(["the site asks the network for:", *loads]) if loads else 0)
for path, page in stale().items():
    path.write_text(page, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: written anew")
