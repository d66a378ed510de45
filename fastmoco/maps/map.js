// The script of a map's page. It puts names into the page as text alone, and asks for nothing outside it.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const count = data.names.length, side = data.side, perSheet = data.sheet * data.sheet;
const by = (id) => document.getElementById(id);
const stage = by("stage"), canvas = by("map"), tip = by("tip"), find = by("find"), said = by("found");
const sheets = [...document.querySelectorAll("img.sheet")];
const SVG = "http://www.w3.org/2000/svg";
const OUTLINES = ["M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z", "M0 -5.5L5.2 4L-5.2 4Z", "M-4.4 -4.4H4.4V4.4H-4.4Z"];

// Classes by the number of their images: the first ones have a mark each, a colour and a shape.
const sizes = new Map();
for (const label of data.labels) sizes.set(label, (sizes.get(label) || 0) + 1);
const classes = [...sizes.keys()].filter((label) => label >= 0).sort((a, b) => sizes.get(b) - sizes.get(a) || a - b);
const SHAPES = 3, MARKS = data.colours * SHAPES;
const markOf = new Map(classes.slice(0, MARKS).map((label, place) => [label, place]));
const order = [-1, ...classes.slice(MARKS), ...classes.slice(0, MARKS).reverse()];
const groups = order.map((label) => [label, []]);
const groupOf = new Map(groups);
for (let i = 0; i < count; i++) groupOf.get(data.labels[i]).push(i);

let selected = -1, hovered = -1, onlyClass = null, sought = "", matches = null, atMatch = -1;
let scale = 1, left = 0, top = 0, width = 0, height = 0, ratio = 1, asked = false, palette = null;

const className = (label) => label < 0 ? "no label" : data.classes[label];
const nameOf = (i) => data.names[i] || "image " + data.ids[i];
const made = (tag, css, text) => {
  const element = document.createElement(tag);
  if (css) element.className = css;
  if (text !== undefined) element.textContent = text;
  return element;
};

function picture(i, size) {
  const made = document.createElement("canvas");
  made.width = made.height = size;
  made.setAttribute("aria-hidden", "true");
  paint(made.getContext("2d"), i, 0, 0, size);
  return made;
}

function paint(context, i, x, y, size) {
  const sheet = sheets[Math.floor(i / perSheet)], place = i % perSheet;
  if (!sheet || !sheet.complete || !sheet.naturalWidth) return;
  context.imageSmoothingQuality = "high";
  const across = place % data.sheet, down = Math.floor(place / data.sheet);
  context.drawImage(sheet, across * side, down * side, side, side, x, y, size, size);
}

// A shape of about the area of a circle of that radius.
function trace(context, shape, x, y, r) {
  if (shape === 0) { context.moveTo(x + r, y); context.arc(x, y, r, 0, 7); }
  else if (shape === 1) {
    context.moveTo(x, y - 1.35 * r); context.lineTo(x + 1.25 * r, y + 0.9 * r);
    context.lineTo(x - 1.25 * r, y + 0.9 * r); context.closePath();
  } else context.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
}

function mark(label) {
  const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "-6 -6 12 12");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", OUTLINES[shapeOf(label)]);
  path.setAttribute("class", markOf.has(label) ? "mark m" + markOf.get(label) % data.colours : "mark");
  svg.append(path);
  return svg;
}

function colours() {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
  palette = { marks: [], other: get("--other"), accent: get("--accent"), card: get("--card"), ink: get("--ink") };
  for (let c = 0; c < data.colours; c++) palette.marks.push(get("--m" + c));
}
const colourOf = (label) => markOf.has(label) ? palette.marks[markOf.get(label) % data.colours] : palette.other;
const shapeOf = (label) => markOf.has(label) ? Math.floor(markOf.get(label) / data.colours) : 0;

// Where a point is on the canvas: positions are in 0..1, x to the right and y downwards.
const screenX = (i) => data.x[i] / 65535 * scale + left, screenY = (i) => data.y[i] / 65535 * scale + top;
const radius = () => (count < 300 ? 5 : count < 2500 ? 4 : count < 8000 ? 3 : 2.4) *
  Math.min(2, Math.max(1, Math.sqrt(scale / fitted())));
const range = (values) => values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [65535, 0]);
const [lowX, highX] = range(data.x), [lowY, highY] = range(data.y);
const fitted = () => Math.max(40, Math.min((width - 56) / Math.max(highX - lowX, 6553),
  (height - 56) / Math.max(highY - lowY, 6553)) * 65535);

function fit() {
  scale = fitted();
  left = (width - (lowX + highX) / 65535 * scale) / 2;
  top = (height - (lowY + highY) / 65535 * scale) / 2;
  redraw();
}

function zoom(factor, x = width / 2, y = height / 2) {
  const next = Math.min(fitted() * 400, Math.max(fitted() * 0.5, scale * factor));
  left = x - (x - left) * next / scale;
  top = y - (y - top) * next / scale;
  scale = next;
  redraw();
}

function show(i) {  // moves the map if a point is outside of it
  const x = screenX(i), y = screenY(i);
  if (x < 20 || y < 20 || x > width - 20 || y > height - 20) { left += width / 2 - x; top += height / 2 - y; }
}

const shines = (i) => (onlyClass === null || data.labels[i] === onlyClass) && (matches === null || matches.has(i));

function redraw() { if (!asked) { asked = true; requestAnimationFrame(draw); } }

function draw() {
  asked = false;
  const context = canvas.getContext("2d"), r = radius();
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const filtered = onlyClass !== null || matches !== null, inside = [];
  for (let i = 0; i < count; i++) {
    const x = screenX(i), y = screenY(i);
    if (x > -40 && y > -40 && x < width + 40 && y < height + 40) inside.push(i);
  }
  const within = new Set(inside), thumbnails = inside.length <= 150 && scale > fitted() * 1.5 || count <= 40;
  for (const bright of filtered ? [false, true] : [true]) {
    for (const [label, members] of groups) {
      context.beginPath();
      for (const i of members) {
        if (within.has(i) && (!filtered || shines(i) === bright)) {
          trace(context, shapeOf(label), screenX(i), screenY(i), bright && filtered ? r * 1.25 : r);
        }
      }
      // of classes in grey the one that is looked at is marked
      context.fillStyle = bright && onlyClass === label && !markOf.has(label) ? palette.accent : colourOf(label);
      context.globalAlpha = bright ? 0.82 : 0.13;
      context.fill();
    }
  }
  context.globalAlpha = 1;
  if (thumbnails) {
    const size = count <= 40 ? 56 : 44;
    for (const i of inside) {
      if (filtered && !shines(i)) continue;
      const x = screenX(i) - size / 2, y = screenY(i) - size / 2;
      context.fillStyle = colourOf(data.labels[i]);
      context.fillRect(x - 2, y - 2, size + 4, size + 4);
      paint(context, i, x, y, size);
    }
  }
  if (selected >= 0) {
    const x = screenX(selected), y = screenY(selected);
    context.strokeStyle = palette.accent;
    context.lineWidth = 1;
    context.globalAlpha = 0.6;
    context.beginPath();
    for (const i of near(selected)) { context.moveTo(x, y); context.lineTo(screenX(i), screenY(i)); }
    context.stroke();
    context.globalAlpha = 1;
    const size = thumbnails ? (count <= 40 ? 32 : 26) : r + 3;
    for (const i of near(selected)) ring(context, i, thumbnails ? size : r + 2, 1.5, thumbnails);
    ring(context, selected, size + 2, 3, thumbnails);
  }
  if (hovered >= 0 && hovered !== selected) ring(context, hovered, thumbnails ? 27 : r + 3, 2, thumbnails);
}

function ring(context, i, r, line, square) {
  for (const [colour, wide] of [[palette.card, line + 1.5], [palette.accent, line]]) {
    context.beginPath();
    trace(context, square ? 2 : 0, screenX(i), screenY(i), square ? r / 0.9 : r);
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.stroke();
  }
}

const near = (i) => data.near.slice(i * data.k, (i + 1) * data.k);

function nearest(x, y, reach) {
  let best = -1, least = reach * reach;
  for (let i = 0; i < count; i++) {
    const dx = screenX(i) - x, dy = screenY(i) - y, far = dx * dx + dy * dy;
    if (far <= least && (shines(i) || best < 0)) { best = i; least = far; }
  }
  return best;
}

function about(i) {  // the class of an image, with its mark
  const line = made("span", "soft class");
  line.append(mark(data.labels[i]), made("span", "name", className(data.labels[i])));
  return line;
}

function select(i, scroll) {
  selected = i;
  const own = by("own"), list = by("near");
  own.replaceChildren();
  list.replaceChildren();
  by("image").hidden = i < 0;
  by("nothing").hidden = i >= 0;
  for (const button of by("chosen").children) button.setAttribute("aria-pressed", String(+button.value === i));
  if (i >= 0) {
    const words = made("div");
    words.append(made("div", "name", nameOf(i)));
    if (classes.length) words.append(about(i));
    words.append(made("p", "soft", "id " + data.ids[i].toLocaleString("en")));
    own.append(picture(i, side * 2), words);
    near(i).forEach((other, place) => {
      const item = made("li"), button = made("button"), names = made("span");
      button.type = "button";
      names.append(made("span", "name", nameOf(other)));
      if (classes.length) names.append(about(other));
      const cosine = (data.cosines[i * data.k + place] / 10000).toFixed(3);
      button.append(picture(other, side), names, made("b", "", cosine));
      button.onclick = () => select(other, true);
      button.onmouseenter = () => { hovered = other; redraw(); };
      button.onmouseleave = () => { hovered = -1; redraw(); };
      item.append(button);
      list.append(item);
    });
    by("near-title").hidden = !data.k;
    show(i);
    by("spoken").textContent = nameOf(i) + (classes.length ? ", " + className(data.labels[i]) : "");
    if (scroll) by("own").scrollIntoView({ block: "nearest" });
  }
  redraw();
}

function hover(i, x, y) {
  hovered = i;
  tip.hidden = i < 0;
  if (i >= 0) {
    tip.replaceChildren(picture(i, side * 2), made("div", "name", nameOf(i)));
    if (classes.length) tip.append(made("div", "soft name", className(data.labels[i])));
    const across = x + 196 > width ? x - 192 : x + 16;
    const down = Math.max(4, Math.min(height - tip.offsetHeight - 4, y - 40));
    tip.style.transform = "translate(" + Math.max(4, across) + "px," + down + "px)";
  }
  redraw();
}

function seek() {
  sought = find.value.trim().toLowerCase();
  matches = null;
  atMatch = -1;
  if (sought) {
    matches = new Set();
    for (let i = 0; i < count; i++) {
      const label = data.labels[i];
      const found = nameOf(i) + (label < 0 ? "" : "\n" + data.classes[label]);
      if (found.toLowerCase().includes(sought)) matches.add(i);
    }
  }
  said.textContent = matches === null ? "" : matches.size.toLocaleString("en") + " found";
  redraw();
}

function step(way) {  // to the next of the images that were found
  if (!matches || !matches.size) return;
  const found = [...matches];
  atMatch = (atMatch + way + found.length) % found.length;
  select(found[atMatch]);
}

function go(dx, dy) {  // to the nearest point in a direction
  if (selected < 0) { select(nearest(width / 2, height / 2, 1e9)); return; }
  const x = screenX(selected), y = screenY(selected);
  let best = -1, least = Infinity;
  for (let i = 0; i < count; i++) {
    if (i === selected || !shines(i)) continue;
    const ahead = (screenX(i) - x) * dx + (screenY(i) - y) * dy;
    const aside = Math.abs((screenX(i) - x) * dy) + Math.abs((screenY(i) - y) * dx);
    if (ahead > 0.5 && ahead >= aside && ahead + aside < least) { best = i; least = ahead + aside; }
  }
  if (best >= 0) select(best);
}

function legend() {
  const place = by("legend");
  const labels = sizes.has(-1) && classes.length ? [...classes, -1] : classes;
  for (const label of labels) {
    const button = made("button");
    button.type = "button";
    const number = made("i", "", sizes.get(label).toLocaleString("en"));
    button.append(mark(label), made("span", "name", className(label)), number);
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => {
      onlyClass = onlyClass === label ? null : label;
      for (const other of place.children) {
        other.setAttribute("aria-pressed", String(other === button && onlyClass !== null));
      }
      redraw();
    };
    place.append(button);
  }
  if (classes.length > MARKS) {
    const more = (classes.length - MARKS).toLocaleString("en");
    by("more").textContent = "The other " + more + " classes are grey; choose one to mark it.";
  }
}

function resize() {
  const old = [width, height];
  width = stage.clientWidth; height = stage.clientHeight; ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  if (!old[0]) fit(); else { left += (width - old[0]) / 2; top += (height - old[1]) / 2; }
  draw();  // at once: its new size has emptied the canvas
}

// One finger or the mouse moves the map, two fingers and the wheel zoom.
const fingers = new Map();
let moved = false, spread = 0;
function at(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
function distance() {
  const [a, b] = [...fingers.values()];
  return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
}
function lift(event) {
  fingers.delete(event.pointerId);
  if (!fingers.size) stage.classList.remove("moving");
}
canvas.onpointerdown = (event) => {
  try { canvas.setPointerCapture(event.pointerId); } catch (error) { /* the pointer is gone */ }
  fingers.set(event.pointerId, at(event));
  if (fingers.size === 1) moved = false; else { moved = true; spread = distance(); }
};
canvas.onpointermove = (event) => {
  const [x, y] = at(event), before = fingers.get(event.pointerId);
  if (!before) { if (event.pointerType === "mouse") hover(nearest(x, y, Math.max(10, radius() + 6)), x, y); return; }
  if (fingers.size === 1 && !moved && Math.hypot(x - before[0], y - before[1]) < 5) return;
  if (!moved) { moved = true; hover(-1); stage.classList.add("moving"); }
  left += (x - before[0]) / fingers.size;
  top += (y - before[1]) / fingers.size;
  fingers.set(event.pointerId, [x, y]);
  if (fingers.size === 2) {
    const [a, b] = [...fingers.values()], now = distance();
    zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    spread = now;
  }
  redraw();
};
canvas.onpointerup = (event) => {
  const [x, y] = at(event);
  if (fingers.size === 1 && !moved) {
    const i = nearest(x, y, event.pointerType === "mouse" ? Math.max(10, radius() + 6) : 26);
    if (i >= 0) select(i);
  }
  lift(event);
};
canvas.onpointercancel = lift;
canvas.onpointerleave = () => hover(-1);
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
}, { passive: false });
canvas.ondblclick = (event) => zoom(2, ...at(event));
canvas.onkeydown = (event) => {
  const keys = {
    ArrowLeft: () => go(-1, 0), ArrowRight: () => go(1, 0), ArrowUp: () => go(0, -1), ArrowDown: () => go(0, 1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": fit, Escape: () => select(-1),
  };
  if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
};
by("in").onclick = () => zoom(1.5);
by("out").onclick = () => zoom(1 / 1.5);
by("all").onclick = fit;
find.oninput = seek;
find.onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); step(event.shiftKey ? -1 : 1); } };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours(); redraw(); });

function chosen() {
  for (const i of data.chosen) {
    const button = made("button");
    button.type = "button";
    button.value = i;
    button.append(picture(i, side));
    button.title = nameOf(i);
    button.setAttribute("aria-label", nameOf(i));
    button.onclick = () => select(i);
    by("chosen").append(button);
  }
}

Promise.all(sheets.map((sheet) => sheet.complete || sheet.decode().catch(() => null))).then(() => {
  colours();
  legend();
  chosen();
  resize();
  new ResizeObserver(resize).observe(stage);
  select(data.chosen.length ? data.chosen[0] : -1);
  document.documentElement.dataset.ready = "yes";
});
})();
