"""Look and behaviour of the comparison pages, beside what every report has.

Without a script the pictures stand side by side; the script adds the slider, the 1:1 view and the order.
"""

from __future__ import annotations

STYLE = """
main { max-width: 1560px; }
#pairs { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr));
  align-items: start; margin: 14px 0; }
#pairs[data-mode="side"], #pairs[data-mode="pixels"] { grid-template-columns: minmax(0, 1fr); }
.pair { padding: 12px 14px; min-width: 0; scroll-margin-top: 64px; }
.pair header { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; justify-content: space-between;
  margin-bottom: 8px; }
.pair h2 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; } .pair h2 a { color: inherit; text-decoration: none; }
.pair[data-mode="side"], .pair[data-mode="pixels"] { grid-column: 1 / -1; }
a { color: var(--accent); } .problem { color: var(--bad); overflow-wrap: anywhere; }
.controls { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center;
  padding: 10px 0; background: var(--page); } .controls label { font-size: .9rem; color: var(--soft); }
.controls select { font: inherit; max-width: 60vw; }
.modes { display: none; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.scripted .modes { display: inline-flex; }
.modes button { font: inherit; font-size: .86rem; line-height: 1.2; padding: 6px 11px; border: 0; cursor: pointer;
  color: var(--ink); background: var(--card); white-space: nowrap; }
.modes button + button { border-left: 1px solid var(--line); }
.modes button[aria-pressed="true"] { background: var(--accent); color: var(--card); }
.pages { display: flex; flex-wrap: wrap; gap: 4px; margin: 10px 0; }
.pages a, .pages span { padding: 3px 9px; border-radius: 6px; }
.pages a { border: 1px solid var(--line); background: var(--card); text-decoration: none; }
.pages a[aria-current] { background: var(--accent); color: var(--card); }
.view { --at: 50%; --x: 50%; --y: 50%; position: relative; display: grid; gap: 8px; margin: 0 auto;
  max-width: calc(2 * min(var(--w) * 1px, 80vh * var(--w) / var(--h)) + 8px);
  grid-template-columns: repeat(2, minmax(0, 1fr)); justify-items: center; }
.view.alone, .view.wide { grid-template-columns: minmax(0, 1fr);
  max-width: min(100%, var(--w) * 1px, 80vh * var(--w) / var(--h)); }
.picture { position: relative; min-width: 0; width: 100%;
  max-width: min(100%, var(--w) * 1px, 80vh * var(--w) / var(--h)); }
.picture img { width: 100%; height: auto; margin: 0; background: var(--flat-back); -webkit-user-select: none;
  user-select: none; }
.view.small img { image-rendering: pixelated; }
.view.alpha img { background: repeating-conic-gradient(#b9bec6 0 25%, #f2f4f7 0 50%) 0 0 / 18px 18px; }
.label { position: absolute; left: 8px; bottom: 8px; padding: 1px 8px; border-radius: 6px; font-size: .78rem;
  color: #fff; background: rgb(0 0 0 / .6); pointer-events: none; }
.view.small .label, .view.wide .label { position: static; display: inline-block; margin-top: 4px; }
.handle, .view input { display: none; }
.pair[data-mode="slider"] .view { gap: 0; grid-template-columns: minmax(0, 1fr); cursor: ew-resize; touch-action: pan-y;
  max-width: min(100%, var(--w) * 1px, 80vh * var(--w) / var(--h)); overflow: hidden; border-radius: 4px; }
.pair[data-mode="slider"] .view:has(:focus-visible) { outline: 3px solid var(--accent); outline-offset: 2px; }
.pair[data-mode="slider"] .picture { grid-area: 1 / 1; max-width: 100%; }
.pair[data-mode="slider"] .lr { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.pair[data-mode="slider"] .output { clip-path: inset(0 0 0 var(--at)); }
.pair[data-mode="slider"] .output .label { left: auto; right: 8px; }
.pair[data-mode="slider"] .view.small .output .label,
.pair[data-mode="slider"] .view.wide .output .label { float: right; }
.pair[data-mode="slider"] .handle { display: block; position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px rgb(0 0 0 / .35); pointer-events: none; }
.pair[data-mode="slider"] .handle::after { content: "\\2039\\2002\\203a"; position: absolute; top: 50%; left: 50%;
  width: 34px; height: 34px; translate: -50% -50%; border-radius: 99px; background: #fff; color: #1c2430;
  text-align: center; font: 600 17px/31px system-ui, sans-serif; box-shadow: 0 0 0 1px rgb(0 0 0 / .35); }
.pair[data-mode="slider"] .view.wide .handle::after { content: none; }
.pair[data-mode="slider"] .view input { display: block; position: absolute; inset: 0; width: 100%; height: 100%;
  margin: 0; opacity: 0; pointer-events: none; }
.pair[data-mode="pixels"] .view { cursor: move; touch-action: none; max-width: calc(2 * var(--w) * 1px + 8px); }
.pair[data-mode="pixels"] .picture { max-width: calc(var(--w) * 1px); }
.pair[data-mode="pixels"] .picture img { height: min(62vh, var(--h) * 1px); object-fit: none;
  object-position: var(--x) var(--y); }
.pair[data-mode="pixels"] .view.small img { object-fit: fill; }
.pair[data-mode="pixels"] .view:focus { outline: 3px solid var(--accent); outline-offset: 2px; }
.pair dl { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 10px 0 0; font-size: .88rem; }
.pair dl div { display: flex; gap: 6px; min-width: 0; } .pair dt { color: var(--soft); }
.pair dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 700px) {
  main { padding: 18px 10px 40px; } .pair { padding: 10px; scroll-margin-top: 0; } .controls { position: static; }
  .view { grid-template-columns: minmax(0, 1fr); }
  .pair[data-mode="pixels"] .picture img { height: min(32vh, var(--h) * 1px); }
}
"""

SCRIPT = """
"use strict";
const pairs = document.getElementById("pairs");
const controls = document.getElementById("controls");
const clamp = value => Math.min(100, Math.max(0, value));

function press(buttons, mode) {
  for (const button of buttons) button.setAttribute("aria-pressed", button.value === mode);
}
function show(pair, mode) {
  if (!pair.querySelector(".modes")) return;
  pair.dataset.mode = mode;
  press(pair.querySelectorAll("button"), mode);
  const view = pair.querySelector(".view");
  if (mode === "pixels") view.tabIndex = 0; else view.removeAttribute("tabindex");
}
function showAll(mode) {
  pairs.dataset.mode = mode;
  press(controls.querySelectorAll("button"), mode);
  for (const pair of pairs.children) show(pair, mode);
  for (const link of document.querySelectorAll(".pages a, .problem a[href^='compare']")) link.search = "?" + mode;
}
function onMode(place, chosen) {
  place.addEventListener("click", event => { if (event.target.matches(".modes button")) chosen(event.target.value); });
}
function pan(view, x, y) {
  view.style.setProperty("--x", clamp(x) + "%");
  view.style.setProperty("--y", clamp(y) + "%");
}
function wire(pair) {
  const view = pair.querySelector(".view"), input = pair.querySelector("input");
  if (!input) return;
  const slide = () => view.style.setProperty("--at", input.value + "%");
  input.addEventListener("input", slide);
  slide();
  const point = event => {
    const sliding = pair.dataset.mode === "slider";
    const box = (sliding ? view : event.target.closest(".picture") || view).getBoundingClientRect();
    const x = 100 * (event.clientX - box.left) / box.width, y = 100 * (event.clientY - box.top) / box.height;
    if (pair.dataset.mode === "pixels") return pan(view, x, y);
    input.value = clamp(x);
    slide();
  };
  view.addEventListener("pointerdown", event => {
    if (pair.dataset.mode === "side" || event.button !== 0) return;
    if (pair.dataset.mode === "slider") { view.setPointerCapture(event.pointerId); input.focus(); }
    point(event);
  });
  // Else the browser takes the focus away from the slider again.
  view.addEventListener("mousedown", event => { if (pair.dataset.mode === "slider") event.preventDefault(); });
  view.addEventListener("pointermove", event => {
    if (pair.dataset.mode === "pixels" || (pair.dataset.mode === "slider" && event.buttons & 1)) point(event);
  });
  view.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] }[event.key];
    if (pair.dataset.mode !== "pixels" || !step) return;
    event.preventDefault();
    const now = axis => parseFloat(view.style.getPropertyValue(axis) || "50");
    pan(view, now("--x") + step[0], now("--y") + step[1]);
  });
}
function sort(value) {
  const [key, way] = value.match(/^(.*)-(up|down)$/).slice(1);
  const sign = way === "up" ? 1 : -1;
  const number = pair => parseFloat(pair.getAttribute("data-" + key));
  const cards = [...pairs.children].sort((a, b) => {
    const one = number(a), two = number(b);
    if (isNaN(one) || isNaN(two)) return isNaN(one) - isNaN(two);
    return sign * (one - two);
  });
  pairs.append(...cards);
}
document.documentElement.classList.add("scripted");
for (const pair of pairs.children) {
  wire(pair);
  onMode(pair, mode => show(pair, mode));
}
onMode(controls, showAll);
const order = document.getElementById("order");
if (order) order.addEventListener("change", () => sort(order.value));
const asked = location.search.slice(1);
showAll(["slider", "side", "pixels"].includes(asked) ? asked : "slider");
"""
