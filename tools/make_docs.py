"""Write the pages of docs/ that are generated from the code; `--check` fails when one is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from backend_docs import architectures_page, backends_page
from certificate_docs import certificate_page

from mech_interp.sites import KINDS, Site

ROOT = Path(__file__).parents[1]


def sites_page() -> str:
    """docs/sites.md."""
    lines = [
        "# Sites",
        "",
        "Written by `tools/make_docs.py` from `mech_interp.sites`; layer 3 stands for any layer. An index in",
        "brackets names one head (key/value heads for `k`, `v` and `rot_k`): `blocks.3.attn.hook_z[7]`, or",
        "`z.3.7` for short.",
        "",
        "| short | hook name | axes after the prompt | holds |",
        "| --- | --- | --- | --- |",
    ]
    for kind in KINDS.values():
        site = Site(kind.name, 3 if kind.in_block else None)
        short = f"{kind.name}.3" if kind.in_block else kind.name
        lines.append(f"| `{short}` | `{site}` | {', '.join(kind.axes)} | {kind.meaning} |")
    lines += [
        "",
        "A site that an architecture lacks is refused with the reason: GPT-2 has no rotary embedding and so",
        "no `rot_q`, Llama has no learned positions and so no `pos_embed`.",
        "",
    ]
    return "\n".join(lines)


PAGES = {
    "docs/sites.md": sites_page,
    "docs/architectures.md": architectures_page,
    "docs/backends.md": backends_page,
    "docs/certificate.md": certificate_page,
}


def main() -> int:
    """Write or check every page; 1 when a check fails."""
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"Out of date: {', '.join(stale)}. Run: python tools/make_docs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
