"""What moves in the page of timeline.py: its style, and its script, which draws on two canvases.

The script takes everything from one block of data, writes text only as text,
  and fetches nothing. It looks at
the visible part only, by bisection in each lane, and draws at most one mark a pixel column: so a hundred
thousand calls can be dragged about.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #5b6675; --line: #dde1e7; --stripe: #f3f5f8;
  --ok: #0072b2; --refused: #d98a00; --unknown: #a6558a; --fault: #d1320a; --mark: #39414e;
  --good: #00745a; --shade: rgba(20, 30, 50, .10);
  --band0: #cfe3f1; --band1: #f6e3bd; --band2: #d7e8d2; --band3: #ead5e3; --band4: #e3dfd6;
    --band5: #d3d9ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2028; --ink: #e8ecf2; --soft: #9aa7b8; --line: #2c3541; --stripe: #1e252f;
    --ok: #56a9e0; --refused: #e9ab3c; --unknown: #d58abb; --fault: #ff7043; --mark: #c3ccd8;
    --good: #35c19a; --shade: rgba(0, 0, 0, .45);
    --band0: #23445c; --band1: #55431d; --band2: #2c4a2b; --band3: #4d3144; --band4: #423e36;
      --band5: #31385c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 28px 28px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 28px 0 10px; }
.verdict { display: inline-block; padding: 3px 12px; border-radius: 999px; color: #fff; font-weight: 600;
  background: var(--soft); margin-right: 10px; }
.verdict.good { background: var(--good); } .verdict.bad { background: var(--fault); }
@media (prefers-color-scheme: dark) { .verdict { color: #101418; } }
.lead { margin: 6px 0 18px; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px 14px; }
.facts dt { color: var(--soft); font-size: 12.5px; }
.facts dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.notes { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
.notes td, .notes th { text-align: left; padding: 6px 12px; border-top: 1px solid var(--line);
  vertical-align: top; }
.notes th { font-weight: 600; } .notes th, .notes td:nth-child(2) { white-space: nowrap; width: 1%; }
 .notes .wrong { color: var(--fault);
  font-weight: 600; }
.notes .correct { color: var(--good); font-weight: 600; } .notes .not { color: var(--soft);
  font-weight: 600; }
.fault { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--fault);
  border-radius: 6px; padding: 10px 14px; margin: 0 0 10px; }
.fault b { color: var(--fault); } .fault ol { margin: 6px 0 0; padding-left: 22px; color: var(--soft); }
.fault p { margin: 0; overflow-wrap: anywhere; } .fault li { overflow-wrap: anywhere; font-size: 13.5px; }
button { font: inherit; font-size: 13px; color: var(--ink); background: var(--card); padding: 3px 11px;
  border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
button:hover { border-color: var(--soft); }
.fault button { float: right; margin-left: 12px; }
.bar { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; margin: 0 0 8px; }
.bar .keys { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--soft); font-size: 13px; flex: 1; }
.key i { display: inline-block; width: 18px; height: 10px; border-radius: 2px; margin-right: 6px; }
.key i.ok { background: var(--ok); } .key i.refused { background: var(--refused); }
.key i.unknown { border: 1px solid var(--unknown); background: repeating-linear-gradient(135deg,
  var(--unknown) 0 2px, transparent 2px 5px); }
.key i.read { height: 4px; margin-bottom: 3px; background: var(--ok); }
.key i.hit { border: 2px solid var(--fault); }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.chart canvas { display: block; touch-action: pan-y; }
#overview { border-bottom: 1px solid var(--line); cursor: crosshair; }
#scroll { overflow-y: auto; max-height: 72vh; position: relative; }
#lanes { position: sticky; top: 0; cursor: grab; outline: none; }
#lanes:focus-visible { box-shadow: inset 0 0 0 2px var(--ok); }
#tip { position: fixed; z-index: 9; pointer-events: none; max-width: 520px; background: var(--card);
  color: var(--ink); border: 1px solid var(--line); border-radius: 8px; padding: 9px 12px; font-size: 13px;
  box-shadow: 0 6px 24px var(--shade); overflow-wrap: anywhere; white-space: pre-line; }
#tip[hidden] { display: none; }
#tip b { display: block; } #tip .when { color: var(--soft); font-variant-numeric: tabular-nums; }
#tip .why { color: var(--fault); font-weight: 600; }
.hint { color: var(--soft); font-size: 13px; margin: 8px 0 0; }
"""

SCRIPT: Final = r"""
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const {lanes, spans, marks, faults, total} = data;
  const byId = id => document.getElementById(id);
  const over = byId("overview"), main = byId("lanes"), scroll = byId("scroll"), tip = byId("tip");
  const ROW = 24, AXIS = 26, MARKS = marks.length ? 50 : 0, TOP = AXIS + MARKS, OVER = 58, PAD = 12;
  const count = spans.start.length;
  const first = new Int32Array(lanes.length + 1);
  for (let i = 0; i < count; i++) first[spans.lane[i] + 1]++;
  for (let i = 0; i < lanes.length; i++) first[i + 1] += first[i];
  const why = new Map();
  faults.forEach((fault, n) => fault.spans.forEach(i => why.set(i, [...(why.get(i) || []), n])));
  const context = document.createElement("canvas").getContext("2d");
  const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  context.font = FONT;
  const label = lane => lane.name;
  const labels = lanes.slice(0, 400).map(lane => context.measureText(label(lane)).width);
  const gutter = Math.min(230, 26 + Math.max(82, ...labels));
  let from = 0, to = Math.max(total, 1), width = 0, height = 0, colours = {}, hatch = null, pending = false;
  let hovered = -1;

  const seconds = ns => {
    const span = to - from;
    const digits = span > 5e9 ? 1 : span > 5e8 ? 2 : span > 5e7 ? 3 : span > 5e6 ? 4 : 6;
    return (ns / 1e9).toFixed(digits) + " s";
  };
  const exact = ns => (ns / 1e9).toFixed(6) + " s";
  const lasting = ns => ns < 1e6 ? (ns / 1e3).toFixed(0) + " µs" : ns < 1e9 ? (ns / 1e6).toFixed(2) + " ms"
    : (ns / 1e9).toFixed(3) + " s";
  const x = ns => gutter + (ns - from) / (to - from) * (width - gutter - PAD);
  const time = px => from + (px - gutter) / (width - gutter - PAD) * (to - from);
  const overX = ns => gutter + ns / total * (width - gutter - PAD);
  const overTime = px => (px - gutter) / (width - gutter - PAD) * total;

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["page", "card", "ink", "soft", "line", "stripe", "ok", "refused", "unknown",
      "fault", "mark",
      "band0", "band1", "band2", "band3", "band4", "band5"])
      colours[name] = style.getPropertyValue("--" + name).trim();
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const pen = tile.getContext("2d");
    pen.strokeStyle = colours.unknown;
    pen.lineWidth = 1.6;
    for (const d of [-6, 0, 6]) { pen.beginPath(); pen.moveTo(d - 1, 7); pen.lineTo(d + 7, -1);
      pen.stroke(); }
    hatch = context.createPattern(tile, "repeat");
  }

  function fit(canvas, w, h) {
    const ratio = window.devicePixelRatio || 1;
    canvas.style.width = w + "px";
    canvas.style.height = h + "px";
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = FONT;
    return pen;
  }

  function layout() {
    width = over.parentElement.clientWidth;
    const all = TOP + lanes.length * ROW + 8;
    height = Math.max(TOP + ROW, Math.min(all, Math.round(window.innerHeight * .72)));
    byId("space").style.height = Math.max(0, all - height) + "px";
    draw();
  }

  function draw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; drawOverview(); drawLanes(); });
  }

  // How many calls began in each column, by outcome.
  let columns = null;
  function drawOverview() {
    const pen = fit(over, width, OVER), inner = Math.max(1, Math.floor(width - gutter - PAD));
    if (!columns || columns.inner !== inner) {
      const counts = {ok: new Uint32Array(inner), refused: new Uint32Array(inner),
        unknown: new Uint32Array(inner)};
      let most = 1;
      for (let i = 0; i < count; i++) {
        const own = counts[spans.kinds[spans.kind[i]]];
        if (!own) continue;
        const at = Math.min(inner - 1, Math.floor(spans.start[i] / total * inner));
        own[at]++;
        most = Math.max(most, counts.ok[at] + counts.refused[at] + counts.unknown[at]);
      }
      columns = {inner, counts, most};
    }
    const floor = OVER - 6, scale = (OVER - 16) / columns.most;
    for (let at = 0; at < inner; at++) {
      let y = floor;
      for (const kind of ["ok", "refused", "unknown"]) {
        const n = columns.counts[kind][at];
        if (!n) continue;
        const h = Math.max(1, n * scale);
        pen.fillStyle = colours[kind];
        pen.fillRect(gutter + at, y - h, 1, h);
        y -= h;
      }
    }
    pen.fillStyle = colours.fault;
    for (const fault of faults) {
      const at = overX(fault.at);
      pen.beginPath(); pen.moveTo(at - 5, 0); pen.lineTo(at + 5, 0); pen.lineTo(at, 8); pen.fill();
    }
    pen.fillStyle = colours.soft;
    pen.fillText("the whole run", 12, OVER / 2 + 4);
    if (from > 0 || to < total) {
      const a = overX(from), b = Math.max(a + 2, overX(to));
      pen.globalAlpha = .65; pen.fillStyle = colours.page;
      pen.fillRect(gutter, 0, a - gutter, OVER); pen.fillRect(b, 0, width - PAD - b, OVER);
      pen.globalAlpha = 1; pen.strokeStyle = colours.ink; pen.strokeRect(a + .5, .5, b - a - 1, OVER - 1);
    }
  }

  function ticks() {
    const wanted = (to - from) / Math.max(2, (width - gutter) / 130);
    const power = 10 ** Math.floor(Math.log10(wanted));
    return [1, 2, 5, 10].map(n => n * power).find(n => n >= wanted);
  }

  // The first span of a lane that ends at or after `ns`; within a lane none overlaps the next.
  function bisect(lane, ns) {
    let low = first[lane], high = first[lane + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans.end[middle] < ns) low = middle + 1; else high = middle;
    }
    return low;
  }

  function drawLanes() {
    const pen = fit(main, width, height), y0 = TOP - scroll.scrollTop;
    const step = ticks();
    lanes.forEach((lane, n) => {
      if (n % 2) { pen.fillStyle = colours.stripe; pen.fillRect(0, y0 + n * ROW, width, ROW); }
    });
    pen.fillStyle = colours.line;
    for (let at = Math.ceil(from / step) * step; at <= to; at += step)
      if (x(at) > gutter) pen.fillRect(x(at), AXIS - 4, 1, height);
    lanes.forEach((lane, n) => {
      const y = y0 + n * ROW;
      if (y + ROW < TOP || y > height) return;
      drawLane(pen, n, y);
      pen.fillStyle = colours.card; pen.fillRect(0, y, gutter - 6, ROW);
      if (n % 2) { pen.fillStyle = colours.stripe; pen.fillRect(0, y, gutter - 6, ROW); }
      pen.fillStyle = lane.is_band ? colours.ink : colours.soft;
      pen.fillText(label(lane), 12, y + 16, gutter - 20);
    });
    pen.fillStyle = colours.card; pen.fillRect(0, 0, width, TOP);
    pen.fillStyle = colours.soft; pen.textAlign = "center";
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const px = x(at);
      if (px < gutter + 14 || px > width - 24) continue;
      pen.fillText(seconds(at), px, 17);
    }
    pen.textAlign = "left";
    drawMissing(pen);
    drawMarks(pen);
    pen.fillStyle = colours.line; pen.fillRect(0, TOP - 1, width, 1);
    drawFaultNames(pen, y0);
  }

  // Where something is missing there is nothing to mark: the time itself is.
  function drawMissing(pen) {
    for (const {between} of faults) {
      if (!between || between[1] < from || between[0] > to) continue;
      const a = Math.max(gutter, x(between[0])), b = Math.min(width - PAD, x(between[1]));
      pen.globalAlpha = .18; pen.fillStyle = colours.fault;
      pen.fillRect(a, TOP, Math.max(b - a, 2), height);
      pen.globalAlpha = 1;
    }
  }

  function drawMarks(pen) {
    const ends = [-1, -1, -1];
    pen.strokeStyle = pen.fillStyle = colours.mark;
    for (const mark of marks) {
      const px = x(mark.at);
      if (px < gutter || px > width - PAD) continue;
      pen.globalAlpha = .75; pen.setLineDash([4, 3]); pen.beginPath();
      pen.moveTo(Math.round(px) + .5, AXIS); pen.lineTo(Math.round(px) + .5, height); pen.stroke();
      pen.setLineDash([]); pen.globalAlpha = 1;
      const wide = pen.measureText(mark.text).width, row = ends.findIndex(end => end <= px);
      if (row < 0) continue;
      const left = Math.min(px + 4, width - PAD - wide);
      pen.fillStyle = colours.card; pen.fillRect(left - 2, AXIS + row * 16, wide + 4, 15);
      pen.fillStyle = colours.mark; pen.fillText(mark.text, left, AXIS + 12 + row * 16);
      ends[row] = left + wide + 8;
    }
  }

  function drawLane(pen, lane, y) {
    const last = first[lane + 1];
    let covered = -1, coveredKind = -1;
    for (let i = bisect(lane, from); i < last && spans.start[i] <= to; i++) {
      const kind = spans.kinds[spans.kind[i]], a = Math.max(gutter - 4, x(spans.start[i]));
      const b = Math.min(width - PAD, x(spans.end[i])), w = Math.max(b - a, 1.5);
      if (kind.startsWith("band")) { drawBand(pen, i, kind, a, b, y); continue; }
      const marked = why.has(i);
      if (!marked && b <= covered && coveredKind === kind) continue;
      covered = a + w; coveredKind = kind;
      const small = spans.light[i], top = y + (small ? 9 : 4), h = small ? 6 : ROW - 8;
      if (kind === "unknown") {
        pen.fillStyle = w > 4 ? hatch : colours.unknown; pen.fillRect(a, top, w, h);
        pen.strokeStyle = colours.unknown; pen.lineWidth = 1;
        if (w > 4) { pen.strokeRect(a + .5, top + .5, w - 1, h - 1); drawOpenEnd(pen, b, y); }
      } else {
        pen.fillStyle = colours[kind]; pen.fillRect(a, top, w > 3 ? w - .7 : w, h);
        if (w > 70 && !small) drawWords(pen, i, Math.max(a, gutter), b, y);
      }
      if (marked || i === hovered) {
        pen.strokeStyle = marked ? colours.fault : colours.ink; pen.lineWidth = 2;
        pen.strokeRect(a - 1.5, y + 2, w + 3, ROW - 4);
      }
    }
  }

  function drawWords(pen, i, a, b, y) {
    pen.save(); pen.beginPath(); pen.rect(a, y, b - a - 4, ROW); pen.clip();
    pen.fillStyle = colours.card;
    pen.fillText(spans.text[i].split("\n", 1)[0], a + 6, y + 16);
    pen.restore();
  }

  // Nobody knows when it took effect, if it did: it stays open to the right.
  function drawOpenEnd(pen, px, y) {
    pen.beginPath(); pen.moveTo(px + 2, y + 7); pen.lineTo(px + 7, y + 12); pen.lineTo(px + 2, y + 17);
      pen.stroke();
  }

  function drawBand(pen, i, kind, a, b, y) {
    pen.fillStyle = colours[kind]; pen.fillRect(a, y + 2, Math.max(1, b - a - 1), ROW - 4);
    const text = spans.title[i];
    if (b - a > 14 + Math.min(60, pen.measureText(text).width)) {
      pen.save(); pen.beginPath(); pen.rect(a, y, b - a - 2, ROW); pen.clip();
      pen.fillStyle = colours.ink; pen.fillText(text, Math.max(a, gutter) + 6, y + 16); pen.restore();
    }
  }

  function drawFaultNames(pen, y0) {
    pen.save(); pen.beginPath(); pen.rect(0, TOP, width, height); pen.clip();
    for (const [i, numbers] of why) {
      const a = x(spans.start[i]), b = x(spans.end[i]), y = y0 + spans.lane[i] * ROW;
      if (b < gutter || a > width - PAD || y < TOP - ROW || y > height) continue;
      const text = numbers.map(n => n + 1).join(", "), wide = pen.measureText(text).width + 8;
      const left = Math.max(gutter, Math.min(a - 2, width - PAD - wide));
      pen.fillStyle = colours.fault; pen.fillRect(left, y - 5, wide, 14);
      pen.fillStyle = colours.card; pen.fillText(text, left + 4, y + 6);
    }
    pen.restore();
  }

  function show(a, b) {
    const least = Math.min(total, 2000), size = Math.min(total, Math.max(least, b - a));
    from = Math.max(0, Math.min(a, total - size));
    to = from + size;
    draw();
  }
  const zoom = (factor, at) => show(at - (at - from) * factor, at + (to - at) * factor);
  const middle = () => (from + to) / 2;

  function find(event) {
    const box = main.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const lane = Math.floor((py - TOP + scroll.scrollTop) / ROW);
    if (py < TOP || px < gutter || lane < 0 || lane >= lanes.length) return -1;
    const slack = (to - from) / width * 3, at = time(px);
    let best = -1, distance = slack;
    for (let i = bisect(lane, at - slack); i < first[lane + 1] && spans.start[i] <= at + slack; i++) {
      const own = Math.max(spans.start[i] - at, at - spans.end[i], 0) - (why.has(i) ? slack / 2 : 0);
      if (own <= distance) { best = i; distance = own; }
    }
    return best;
  }

  function explain(i, event) {
    tip.hidden = i < 0;
    if (i < 0) return;
    const add = (name, text) => {
      const part = document.createElement(name === "b" ? "b" : "div");
      part.className = name; part.textContent = text; tip.append(part);
    };
    tip.replaceChildren();
    add("b", spans.title[i]);
    add("when", exact(spans.start[i]) + " + " + lasting(spans.end[i] - spans.start[i]));
    add("text", spans.text[i]);
    for (const n of why.get(i) || []) add("why", (n + 1) + ": " + faults[n].text);
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    const below = event.clientY + 18;
    tip.style.top = (below + box.height > innerHeight ? event.clientY - box.height - 10 : below) + "px";
  }

  let drag = null;
  main.addEventListener("pointerdown", event => {
    drag = {px: event.clientX, from, to}; main.setPointerCapture(event.pointerId);
      main.style.cursor = "grabbing";
  });
  main.addEventListener("pointermove", event => {
    if (drag) {
      const shift = (drag.px - event.clientX) / (width - gutter - PAD) * (drag.to - drag.from);
      show(drag.from + shift, drag.to + shift);
      return;
    }
    const found = find(event);
    if (found !== hovered) { hovered = found; draw(); }
    explain(found, event);
  });
  for (const name of ["pointerup", "pointercancel"])
    main.addEventListener(name, () => { drag = null; main.style.cursor = "grab"; });
  main.addEventListener("pointerleave", () => { hovered = -1; tip.hidden = true; draw(); });
  main.addEventListener("dblclick", event => zoom(.3,
    time(event.clientX - main.getBoundingClientRect().left)));
  main.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
    event.preventDefault();
    if (event.ctrlKey || event.metaKey)
      zoom(Math.exp(event.deltaY * .004), time(event.clientX - main.getBoundingClientRect().left));
    else show(from + event.deltaX / width * (to - from), to + event.deltaX / width * (to - from));
  }, {passive: false});
  main.addEventListener("keydown", event => {
    const shift = (to - from) / 6;
    const act = {ArrowLeft: () => show(from - shift, to - shift), ArrowRight: () => show(from + shift,
      to + shift),
      "+": () => zoom(.6, middle()), "=": () => zoom(.6, middle()), "-": () => zoom(1.6, middle()),
      "0": () => show(0, total)}[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  let pick = null;
  const overAt = event => overTime(event.clientX - over.getBoundingClientRect().left);
  over.addEventListener("pointerdown", event => { pick = overAt(event);
    over.setPointerCapture(event.pointerId); });
  over.addEventListener("pointermove", event => {
    if (pick !== null) show(Math.min(pick, overAt(event)), Math.max(pick, overAt(event)));
  });
  over.addEventListener("pointerup", event => {
    const at = overAt(event), size = to - from;
    if (Math.abs(at - pick) < total / 400) show(at - size / 2, at + size / 2);
    pick = null;
  });
  byId("in").addEventListener("click", () => zoom(.5, middle()));
  byId("out").addEventListener("click", () => zoom(2, middle()));
  byId("all").addEventListener("click", () => show(0, total));
  function goTo(n) {
    const fault = faults[n], own = fault.spans;
    let [a, b] = fault.between || [fault.at, fault.at];
    for (const i of own) { a = Math.min(a, spans.start[i]); b = Math.max(b, spans.end[i]); }
    const margin = Math.max((b - a) * .6, total / 5000, 20000);
    show(a - margin, b + margin);
    if (own.length) scroll.scrollTop = Math.min(...own.map(i => spans.lane[i])) * ROW - ROW;
  }
  document.querySelectorAll("button[data-fault]").forEach(button =>
    button.addEventListener("click", () => { goTo(+button.dataset.fault);
      main.scrollIntoView({block: "nearest"}); }));
  scroll.addEventListener("scroll", draw);
  addEventListener("resize", layout);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); });
  readColours();
  layout();
  if (faults.length && count > 300) goTo(0);
})();
"""
