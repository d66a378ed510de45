"""The style sheet of a map's page, beside that of all pages.

The colours of classes are those of Okabe and Ito (Wong 2011, Nature Methods 8, 441), which colour-blind people tell
apart.
"""

from __future__ import annotations

from fastmoco.report import page

COLOURS = 7
"""Colours of classes in the style sheet; with the three shapes of the script there are 21 marks."""
STYLE = (
    page.STYLE
    + """
:root { --m0: #0072b2; --m1: #d55e00; --m2: #009e73; --m3: #cc79a7; --m4: #e69f00; --m5: #56b4e9; --m6: #000;
  --other: #9aa0aa; --shade: rgb(29 35 48 / 18%); }
@media (prefers-color-scheme: dark) { :root { --m0: #56b4e9; --m1: #d55e00; --m2: #009e73; --m3: #cc79a7;
  --m4: #e69f00; --m5: #f0e442; --m6: #fff; --other: #6c7482; --shade: rgb(0 0 0 / 55%); } }
main { max-width: 1560px; padding: 24px 24px 40px; }
h1 { font-size: 1.6rem; margin: 0 0 2px; }
.said { margin: 0; max-width: none; }
.layout { display: grid; grid-template-columns: minmax(0, 1fr) 380px; gap: 20px; align-items: start; }
.layout section { padding: 16px; }
.tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 12px; }
.tools .space { flex: 1; }
input[type=search] { font: inherit; font-size: 0.94rem; color: inherit; background: var(--page); padding: 6px 12px;
  border: 1px solid var(--line); border-radius: 9px; width: 260px; max-width: 100%; min-width: 0; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 9px;
  padding: 5px 12px; cursor: pointer; }
button:hover { border-color: var(--soft); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.tools button { min-width: 36px; font-size: 0.94rem; }
.stage { position: relative; height: max(380px, calc(100vh - 330px)); overflow: hidden; border-radius: 10px;
  background: var(--page); }
.stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; cursor: crosshair;
  touch-action: none; border-radius: 10px; }
.stage canvas:focus-visible { outline-offset: -2px; }
.stage.moving canvas { cursor: grabbing; }
.tip { position: absolute; left: 0; top: 0; pointer-events: none; background: var(--card); border-radius: 10px;
  border: 1px solid var(--line); box-shadow: 0 6px 24px var(--shade); padding: 8px; width: 176px; font-size: 0.82rem;
  line-height: 1.35; overflow-wrap: anywhere; z-index: 1; }
.tip canvas { position: static; width: 158px; height: 158px; border-radius: 6px; margin-bottom: 6px; }
.legend { gap: 4px 4px; margin: 12px 0 0; max-height: 128px; overflow-y: auto; font-size: 0.86rem; }
.legend button { border-color: transparent; padding: 2px 9px 2px 6px; display: inline-flex; align-items: center;
  gap: 6px; max-width: 100%; text-align: left; overflow-wrap: anywhere; line-height: 1.3; }
.legend button[aria-pressed=true] { border-color: var(--accent); background: var(--page); }
.legend svg { width: 12px; height: 12px; flex: none; }
.legend i { color: var(--soft); font-style: normal; font-variant-numeric: tabular-nums; }
.mark { fill: var(--other); stroke: var(--card); stroke-width: 0.6; }
.m0 { fill: var(--m0); } .m1 { fill: var(--m1); } .m2 { fill: var(--m2); } .m3 { fill: var(--m3); }
.m4 { fill: var(--m4); } .m5 { fill: var(--m5); } .m6 { fill: var(--m6); }
.keys { font-size: 0.86rem; margin: 12px 0 0; max-width: none; } .keys:empty { display: none; }
kbd { font: 0.92em ui-monospace, Menlo, Consolas, monospace; border: 1px solid var(--line); border-radius: 5px;
  padding: 0 5px; background: var(--page); }
.name { unicode-bidi: isolate; overflow-wrap: anywhere; }
.own { display: grid; grid-template-columns: 128px minmax(0, 1fr); gap: 14px; }
.own canvas { width: 128px; height: 128px; border-radius: 8px; display: block; }
.own .name { font-weight: 600; line-height: 1.35; }
.own .class { font-size: 0.92rem; margin-top: 4px; } .own p { margin: 2px 0 0; font-size: 0.86rem; }
.class { display: flex; gap: 6px; align-items: center; } .class svg { width: 10px; height: 10px; flex: none; }
.class .name { font-weight: 400; }
.panel h3 { margin: 20px 0 6px; }
.near { list-style: none; margin: 0; padding: 0; display: grid; gap: 2px; }
.near button { display: grid; grid-template-columns: 48px minmax(0, 1fr) auto; gap: 10px; align-items: center;
  width: 100%; text-align: left; border-color: transparent; padding: 4px 8px 4px 4px; font-size: 0.86rem;
  line-height: 1.3; }
.near button:hover, .near button:focus-visible { background: var(--page); }
.near canvas { width: 48px; height: 48px; border-radius: 6px; display: block; }
.near b { font-variant-numeric: tabular-nums; font-weight: 600; }
.chosen { display: flex; flex-wrap: wrap; gap: 6px; }
.chosen button { padding: 2px; border-width: 2px; line-height: 0; }
.chosen button[aria-pressed=true] { border-color: var(--accent); }
.chosen canvas { width: 44px; height: 44px; border-radius: 6px; }
.sheet { display: none; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.about th { width: 190px; }
@media (max-width: 960px) { .layout { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .stage { height: min(62vh, 110vw); min-height: 300px; } }
@media (max-width: 520px) { main { padding: 16px 10px 32px; } .layout section { padding: 12px; }
  .tools .space { display: none; } input[type=search] { width: 100%; } .tools button { flex: 1; }
  .own { grid-template-columns: 96px minmax(0, 1fr); } .own canvas { width: 96px; height: 96px; }
  .about th { width: 38%; } }
@media print { .tools, .keys { display: none; } }
"""
)
