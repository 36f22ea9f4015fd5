"""The style sheet of a report: one column of panels, light or dark as the reader likes, black on white on paper.

No colour says anything alone: each severity has a sign and a word, each line of a chart its name beside it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CSS"]

_LIGHT: Final = """
--bg:#f6f6f4;--panel:#fff;--ink:#1b1f23;--muted:#57606a;--rule:#dcdfe2;--soft:#f0f2f3;
--problem:#b3261e;--problem-soft:#fcefee;--notice:#7a5000;--notice-soft:#fbf4e4;--fine:#1a6b3a;--accent:#0a5aa8;
--s0:#2f6fae;--s1:#b06d0c;--s2:#2f7d61;--s3:#a34876;--s4:#6a58aa;--s5:#4a7f9f;--s6:#8a5230;--s7:#667422;
"""
_DARK: Final = """
--bg:#111418;--panel:#191d22;--ink:#e4e7ea;--muted:#9aa4ae;--rule:#323940;--soft:#22272d;
--problem:#ff8a80;--problem-soft:#33201f;--notice:#e3b341;--notice-soft:#2e2716;--fine:#6fcf97;--accent:#6db3f2;
--s0:#6aa6e6;--s1:#d79b3a;--s2:#5fbd9b;--s3:#dd8ab3;--s4:#a79be8;--s5:#79bde0;--s6:#d2986c;--s7:#b3c35a;
"""
CSS: Final = (
    f":root{{{_LIGHT}color-scheme:light dark;"
    "--mono:ui-monospace,'SF Mono','Cascadia Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "--sans:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    """
*{box-sizing:border-box}
html{font:15px/1.5 var(--sans);background:var(--bg);color:var(--ink);-webkit-text-size-adjust:100%;
  scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0 auto;max-width:1120px;padding:0 clamp(12px,3vw,32px) 3rem;font-variant-numeric:tabular-nums}
h1,h2,h3,h4,p,ul,dl,dd,figure{margin:0;padding:0}
ul{list-style:none}
h1{font-size:clamp(1.3rem,1.05rem + 1.1vw,1.8rem);line-height:1.25;letter-spacing:-.015em;font-weight:650;
  overflow-wrap:anywhere;text-wrap:pretty}
h2{font-size:1.12rem;line-height:1.3;letter-spacing:-.01em;margin:2.2rem 0 .7rem;overflow-wrap:anywhere}
h3{font-size:.82rem;font-weight:650;color:var(--muted);margin:1.35rem 0 .4rem}
h4{font-size:.82rem;font-weight:600;color:var(--muted)}
code,.mono{font-family:var(--mono);font-size:.87em;overflow-wrap:anywhere}
a{color:var(--accent);text-underline-offset:.15em}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.muted,figcaption,caption{color:var(--muted);font-size:.88rem}
caption{text-align:left;padding:0 0 .4rem}
.num{text-align:right;white-space:nowrap}
.problem{color:var(--problem)}.notice{color:var(--notice)}.fine{color:var(--fine)}
.sign{font-weight:700;margin-right:.35em}
header{padding:1.5rem 0 .2rem}
.eyebrow{color:var(--muted);font-size:.88rem;margin-bottom:.35rem}
.about{display:flex;flex-wrap:wrap;gap:.15rem 1.6rem;margin-top:.8rem;font-size:.9rem}
.about div{display:flex;gap:.5em;min-width:0}
.about dd{overflow-wrap:anywhere;min-width:0}
dt{color:var(--muted)}
nav{margin-top:.9rem;border-block:1px solid var(--rule);padding:.4rem 0;font-size:.9rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.panel,.group{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:1rem 1.2rem 1.1rem}
.group{margin-top:1.1rem;border-top-width:3px}
.group.is-problem{border-top-color:var(--problem)}.group.is-notice{border-top-color:var(--notice)}
.group h2{margin:.1rem 0 .2rem}
.lead{font-size:1.02rem;max-width:78ch}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.38rem .8rem .38rem 0;border-bottom:1px solid var(--rule);
  overflow-wrap:anywhere}
tr>:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
thead th{font-weight:500;color:var(--muted);font-size:.82rem;white-space:nowrap}
tbody th{font-weight:600}
.evidence th code{white-space:nowrap}
.evidence td:last-child{min-width:12.5rem;overflow-wrap:break-word}
.evidence caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.w{display:inline-block;max-width:100%}
td.num,th.num{text-align:right}
.overview [data-label=severity],.overview [data-label=ends],.overview [data-label=state],
.overview [data-label=oldest]{white-space:nowrap}
.overview [data-label=where],.overview [data-label="held by"]{min-width:6.8rem}
.overview [data-label=cause]{overflow-wrap:normal}
.scroll{overflow-x:auto;max-width:100%}
.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem;margin-top:.7rem;
  font-size:.94rem}
.facts dd{overflow-wrap:anywhere}
.two{display:grid;grid-template-columns:minmax(0,1fr) minmax(150px,230px) minmax(0,1fr);align-items:stretch;
  margin-top:.3rem}
.end{border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem;background:var(--soft);font-size:.88rem;
  min-width:0}
.end.moves{border:2px solid var(--accent)}
.end .state{font-weight:650;font-size:1rem}
.end dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.05rem .7rem;margin-top:.3rem}
.end dd{overflow-wrap:anywhere}
.move{color:var(--accent);font-weight:600}
.between{display:flex;flex-direction:column;justify-content:center;gap:.7rem;padding:.3rem .5rem;
  font-size:.8rem;text-align:center;color:var(--muted)}
.between svg{display:block;width:100%;height:14px}
.wire{stroke:var(--ink);stroke-width:1.6;fill:none}.tip{fill:var(--ink)}
.wire.open{stroke-dasharray:7 4}.wire.none{stroke:var(--muted);stroke-dasharray:1.5 5}.tip.none{fill:var(--muted)}
.pictures figcaption{margin:.7rem 0 .1rem}
.means li{padding:.3rem 0;border-bottom:1px solid var(--rule)}.means li:last-child{border:0}
.chip{display:inline-block;font-size:.78rem;border:1px solid currentcolor;border-radius:4px;padding:0 .4em;
  margin-left:.5em;white-space:nowrap}
.command{display:block;background:var(--soft);border:1px solid var(--rule);border-radius:6px;
  padding:.35rem .7rem;margin-top:.3rem;white-space:pre-wrap}
.not dt{color:var(--ink);font-weight:560;margin-top:.45rem}.not dd{color:var(--muted)}
.split{display:grid;grid-template-columns:minmax(0,1.25fr) minmax(0,1fr);gap:1.1rem;align-items:start}
.split>.alone{grid-column:1/-1}
.diagram{display:block;width:100%;min-width:480px;max-width:700px;height:auto}
.arrow{fill:none;stroke:var(--muted);stroke-width:1.2}.head{fill:var(--muted)}
.note{fill:var(--muted);font-size:11px}
.box rect{fill:var(--soft);stroke:var(--rule)}
.box .name{fill:var(--muted);font-size:11px}.box .count{fill:var(--ink);font-size:16px;font-weight:650}
.box.empty .count{fill:var(--muted);font-weight:400}
.box.is-problem rect{fill:var(--problem-soft);stroke:var(--problem);stroke-width:1.6}
.box.is-problem .stuck{fill:var(--problem)}
.box.is-notice rect{fill:var(--notice-soft);stroke:var(--notice);stroke-width:1.6}
.box.is-notice .stuck{fill:var(--notice)}
.stuck{font-size:11.5px;font-weight:600;text-anchor:end}
.chart{display:block;width:100%;max-width:780px;height:auto}
table+table{margin-top:1.2rem}
.grid{stroke:var(--rule)}.tick{fill:var(--muted);font-size:11px}.tick.end{text-anchor:end}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.line.s4{stroke:var(--s4)}.line.s5{stroke:var(--s5)}.line.s6{stroke:var(--s6)}.line.s7{stroke:var(--s7)}
.label{font-size:11px;fill:var(--ink)}
details{margin-top:.6rem}summary{cursor:pointer;color:var(--muted);font-size:.9rem}
footer{margin-top:2.2rem;padding-top:.7rem;border-top:1px solid var(--rule);color:var(--muted);font-size:.85rem}
@media (max-width:860px){.split{grid-template-columns:minmax(0,1fr)}}
@media screen and (max-width:760px){
.panel,.group{padding:.8rem .85rem .9rem}
.two{grid-template-columns:minmax(0,1fr)}
.between{padding:.5rem 0}.between svg{max-width:220px;margin-inline:auto}
.cards thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.cards,.cards tbody,.cards tr,.cards td,.cards th{display:block}
.cards tr{padding:.55rem 0;border-bottom:1px solid var(--rule)}.cards tr:last-child{border:0}
.cards td,.cards th{border:0;padding:.05rem 0;text-align:left;display:grid;
  grid-template-columns:7.2rem minmax(0,1fr);gap:.6rem}
.cards td::before,.cards th::before{content:attr(data-label);color:var(--muted);font-weight:400;
  font-family:var(--sans)}
.cards caption{display:block}.cards [data-label]{min-width:0;white-space:normal}
.evidence th code{white-space:normal}.evidence td:last-child{min-width:0}
.facts{grid-template-columns:minmax(0,1fr);gap:0}.facts dd{margin-bottom:.35rem}
}
@page{size:A4;margin:14mm 13mm}
@media print{
html{font-size:9.6pt;background:#fff}body{max-width:none;padding:0}
nav{display:none}header{padding-top:0}
.panel,.group{border-radius:0;break-inside:auto;padding:.6rem .8rem}
h2,h3,h4,caption,figcaption,thead{break-after:avoid}
tr,.end,.means li,.two,.diagram,.chart,.command{break-inside:avoid}
.diagram{min-width:0;max-width:150mm}.split{grid-template-columns:minmax(0,1fr)}
details::details-content{content-visibility:visible;height:auto;display:block}
.scroll{overflow:visible}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
@media (forced-colors:active){.box rect,.end{stroke:CanvasText}.end.moves{border-width:3px}}
"""
)
