"""The report's style sheet, for light and for dark ground."""

from __future__ import annotations

from phase8.codecs.stages import STAGES

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1b1f24;--soft:#5b6570;--grid:#dde2e7;--good:#00704f;
--bad:#bd3f0d;--baseline:#767f88;$light--other:#8d5fa8;
--s1:#0072b2;--s2:#e69f00;--s3:#bb6f99;--s4:#009e73;
--g1:#0072b2;--g2:#56b4e9;--g3:#0b8f6c;--g4:#8fcf6f;--g5:#e6a817;--g6:#d55e00;--g7:#cc8fb5;--g8:#9aa2aa}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1c2024;--ink:#e8eaed;--soft:#a3adb7;--grid:#343b42;
--good:#5fd3ac;--bad:#ff946b;--baseline:#98a1aa;$dark--other:#c39be0;
--s1:#4aa3df;--s2:#e9ae3c;--s3:#d494b8;--s4:#33b890;
--g1:#3f97d6;--g2:#8fd0f5;--g3:#25a883;--g4:#a5dc88;--g5:#ecc050;--g6:#e5813f;--g7:#dba6c8;--g8:#7f8890}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 6px}
h2{font-size:1.15rem;font-weight:650;margin:40px 0 4px}
h3{font-size:.95rem;font-weight:600;margin:0 0 8px}
p{margin:4px 0 12px;max-width:76ch}
.soft{color:var(--soft);font-size:.9rem}
.verdict{font-size:1.4rem;line-height:1.35;font-weight:600;margin:0 0 10px;max-width:60ch;text-wrap:pretty}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(126px,1fr));gap:10px;margin:20px 0 8px}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:8px}
.tile{padding:11px 14px}
.tile span{display:block;color:var(--soft);font-size:.8rem}
.tile b{display:block;font-size:1.3rem;font-weight:650;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile small{display:block;color:var(--soft);font-size:.78rem}
.two,.three{display:grid;gap:14px;margin-top:12px;align-items:start}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.card{padding:14px 16px;margin:0;min-width:0;overflow-x:auto}
.card svg{display:block;width:100%;height:auto}
.two .card svg{min-width:380px}
.say{min-width:15em}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--grid);border-radius:8px;margin-top:12px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.89rem}
th,td{padding:7px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
thead th{font-weight:600;color:var(--soft);font-size:.8rem;vertical-align:bottom}
tbody th{font-weight:500}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td small,th small{color:var(--soft);font-size:.78rem;display:block;font-weight:400;font-variant-numeric:tabular-nums}
.group{text-align:center;border-left:1px solid var(--grid)}
.first{border-left:1px solid var(--grid)}
.sticky{position:sticky;left:0;background:var(--card)}
.good{color:var(--good);font-weight:600;white-space:nowrap}
.bad{color:var(--bad);font-weight:600;white-space:nowrap}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.5em}
details{background:var(--card);border:1px solid var(--grid);border-radius:8px;margin-top:12px}
summary{padding:11px 16px;cursor:pointer;font-weight:600}
details pre,details .list{margin:0;padding:0 16px 14px;max-height:520px;overflow:auto}
pre{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.whole{white-space:nowrap}
.checks{padding:0 16px 12px;overflow-x:auto}.checks h3{margin:14px 0 2px}
.list td{font-size:.8rem;padding:4px 10px 4px 0}.list td:last-child{overflow-wrap:anywhere}
@media (max-width:560px){main{padding:18px 12px 40px}.verdict{font-size:1.15rem}
th,td{padding:6px 9px}.card{padding:12px 10px}.list td:nth-child(3){display:none}}
@media print{body{background:#fff}details{break-inside:avoid}}
"""


def page_style() -> str:
    """The style sheet with a colour for every stage, on light and on dark ground."""
    light, dark = ("".join(f"--{stage.name}:{stage.colours[ground]};" for stage in STAGES) for ground in (0, 1))
    return _STYLE.replace("$light", light).replace("$dark", dark)
