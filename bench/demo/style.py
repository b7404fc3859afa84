"""The look of a report. Colours after Okabe and Ito, lighter in the dark, so that contrast is kept there."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1c2126; --soft: #59636d; --rule: #dedbd3; --track: #f0eee8;
  --ok: #0072b2; --less: #86c5ea; --unmet: #a06c00; --no: #c8500a; --open: #9c3f86; --none: #8a9199;
  --reign: #dfe7e3; --reign-ink: #1f4d3f; --good: #1f6f54;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e8e6e1; --soft: #a0a8b0; --rule: #33393f; --track: #23282d;
    --ok: #56b4e9; --less: #2f6f96; --unmet: #e6b400; --no: #f08a4b; --open: #e08acb; --none: #757d85;
    --reign: #24403a; --reign-ink: #b9e3d4; --good: #7ccfb0;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 44px; }
.eyebrow { margin: 0 0 6px; font-size: 13px; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); }
.verdict { margin-left: 10px; padding: 2px 10px; border: 1.5px solid; border-radius: 99px; font-weight: 650;
  letter-spacing: .02em; }
.verdict.good { color: var(--good); }
.verdict.bad { color: var(--no); }
h1 { margin: 0 0 10px; font-size: clamp(28px, 4vw, 42px); line-height: 1.12; letter-spacing: -.02em; }
.headline { max-width: 62em; margin: 0 0 26px; font-size: 18.5px; }
h2 { margin: 46px 0 8px; font-size: 21px; letter-spacing: -.01em; }
section > p { max-width: 72ch; margin: 0 0 11px; }
dl { display: grid; grid-template-columns: minmax(120px, 190px) minmax(0, 78ch); gap: 14px 26px;
  margin: 14px 0 0; }
dt { font-weight: 680; border-top: 1.5px solid var(--ink); padding-top: 6px; }
dd { margin: 0; padding-top: 6px; border-top: 1px solid var(--rule); }
@media (max-width: 700px) { dl { display: block; } dt { margin-top: 14px; } }
code { font: .92em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px;
  margin: 0 0 26px; padding: 0; list-style: none; }
.figures li { padding: 15px 18px 14px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; }
.figures strong { display: block; font-size: 31px; line-height: 1.15; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.figures span { display: block; margin-top: 3px; font-size: 14px; line-height: 1.35; color: var(--soft); }
figure { margin: 0; padding: 18px 18px 12px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
figcaption { max-width: 92ch; margin: 8px 0 4px; font-size: 14px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 0 0 10px; padding: 0; list-style: none;
  font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 8px; }
.scroll { overflow-x: auto; }
.scroll > svg { display: block; width: 100%; min-width: 860px; height: auto; }
table { border-collapse: collapse; font-size: 14.5px; margin-top: 6px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1.5px solid var(--rule);
  white-space: nowrap; }
th, td { padding: 6px 22px 6px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
td.number { text-align: right; white-space: nowrap; }
q { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.words { width: 100%; }
.words th, .words td { padding-right: 14px; white-space: normal; }
.words :is(th, td):last-child { padding-right: 0; }
.words :is(th, td):nth-child(n+6) { text-align: right; }
.words td:not(:nth-child(1), :nth-child(4), :nth-child(5)) { white-space: nowrap; }
.words td:nth-child(1) { min-width: 5.5em; }
.words td:nth-child(4) { min-width: 17em; }
.words td:nth-child(5) { min-width: 7em; }
.unmet-text { color: var(--unmet); font-weight: 600; }
.refused-text { color: var(--no); font-weight: 600; }
.unknown-text { color: var(--open); font-weight: 600; }
footer { margin-top: 50px; padding-bottom: 40px; font-size: 13.5px; color: var(--soft); }
footer p { margin: 0 0 4px; }
svg text { font-size: 12px; fill: var(--ink); }
svg .node { font-size: 21px; font-weight: 680; letter-spacing: -.01em; }
svg .track-name, svg .tick, svg .side { fill: var(--soft); font-size: 11.5px; }
svg .track { fill: var(--track); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg path.acknowledged, svg rect.acknowledged { fill: var(--ok); }
svg path.degraded, svg rect.degraded { fill: var(--less); }
svg .wait { stroke-width: 2.4; }
svg .sign { fill: none; stroke-width: 2.1; stroke-linecap: round; }
svg .refused { stroke: var(--no); }
svg .unmet { stroke: var(--unmet); }
svg .unmet .full { fill: var(--unmet); }
svg .unknown { stroke: var(--open); }
svg .unknown .wait { stroke-dasharray: 4 2.5; }
svg .ring { fill: var(--card); }
svg .unreached .sign { fill: var(--none); }
svg .reign { fill: var(--reign); }
svg .reign-text { fill: var(--reign-ink); font-weight: 600; font-size: 11.5px; }
svg .state { fill: var(--less); }
svg .state.off, svg .state.sync { fill: var(--reign); }
svg .state.recovering { opacity: .55; }
svg .state-text { font-weight: 600; font-size: 11.5px; }
svg .bracket { stroke: var(--ink); stroke-width: 1.3; fill: none; }
svg .paper { fill: var(--card); }
svg .span { font-weight: 600; }
svg .moment { stroke-width: 1.3; }
svg .moment.fault { stroke: var(--no); }
svg .moment.step { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .flag { font-weight: 600; }
svg .flag.fault { fill: var(--no); }
svg .dot.fault { fill: var(--no); }
svg .dot.step { fill: var(--soft); }
svg .side-name { font-weight: 600; fill: var(--soft); }
svg .cut { stroke: var(--no); stroke-width: 2; stroke-dasharray: 9 5; }
svg .hatch { stroke: var(--none); stroke-width: 3; opacity: .5; }
@media print { body { background: white; } figure { break-inside: avoid; } }
"""
