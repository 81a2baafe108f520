"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const layers = data.layers;
const el = (tag, attrs = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attrs)) key === "class" ? (node.className = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const svg = (tag, attrs) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attrs)) node.setAttribute(key, value);
  return node;
};
const num = (value, digits = 3) => value === null || value === undefined ? "–" : value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? String(+value.toPrecision(digits)) : value.toExponential(digits - 1);
const big = (n) => n >= 1e9 ? num(n / 1e9) + " G" : n >= 1e6 ? num(n / 1e6) + " M" : n >= 1e3 ? num(n / 1e3) + " k" : String(n);
const percent = (share) => (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + " %";
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- tooltip ----
const tip = $("tip");
function showTip(event, text) {
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(innerWidth - box.width - 8, event.clientX + 14)) + "px";
  tip.style.top = Math.max(4, Math.min(innerHeight - box.height - 8, event.clientY + 14)) + "px";
  tip.style.opacity = 1;
}
const hideTip = () => { tip.style.opacity = 0; };

// ---- summary ----
$("sub").textContent = `${data.augment === "affine" ? "bias included" : "weights only"} · ${data.calibration ? `${data.calibration.samples} samples on ${data.calibration.engine}` : "no samples: spectra only"}`;
const withGraph = layers.filter((l) => l.graph);
const channels = withGraph.reduce((sum, l) => sum + l.graph.n, 0);
const redundant = withGraph.reduce((sum, l) => sum + l.graph.redundancy * l.graph.n, 0);
const by = data.calibration ? `within ${num(data.threshold)} rad of another's response` : `with a spectrum within ${num(data.threshold)} rad of another's`;
for (const [value, label] of [
  [String(data.totals.layers), "layers with a spectrum"],
  [big(data.totals.parameters), "parameters in them"],
  [channels ? percent(redundant / channels) : "–", `of ${big(channels)} channels ${by}`],
  [String(data.identical.length), "sets of layers with equal weights"],
  [`${data.reused} / ${data.computed + data.reused}`, "spectra found in the cache"],
]) $("tiles").append(el("div", { class: "tile" }, el("b", {}, value), el("span", {}, label)));

// ---- graph ----
const canvas = $("canvas"), ctx = canvas.getContext("2d"), level = $("level"), slider = $("threshold");
level.append(el("option", { value: "-1" }, "all layers"));
layers.forEach((layer, index) => { if (layer.graph) level.append(el("option", { value: String(index) }, `channels of ${layer.name}`)); });
let scene = null, view = { x: 0, y: 0, k: 1 }, hover = -1, picked = -1;

function layerScene() {
  const n = layers.length, columns = Math.max(1, Math.ceil(Math.sqrt(n * 1.9))), gap = 70;
  const most = Math.max(...layers.map((l) => l.parameters), 1);
  const nodes = layers.map((layer, i) => {
    const row = Math.floor(i / columns), at = i % columns, column = row % 2 ? columns - 1 - at : at;
    return { x: column * gap, y: row * gap * 1.15, r: 6 + 15 * Math.sqrt(layer.parameters / most), label: layer.name };
  });
  const edges = data.pairs.map((p) => ({ a: p.a, b: p.b, d: p.data ?? p.fs, fs: p.fs, pair: p }));
  for (const set of data.identical) for (const other of set.layers.slice(1)) edges.push({ a: set.layers[0], b: other, d: 0, fs: 0, same: true });
  return { nodes, edges, kind: "layers", chain: true };
}

function channelScene(index) {
  const graph = layers[index].graph, n = graph.n;
  const edges = graph.edges.map(([a, b, d, fs]) => ({ a, b, d: d / 1e4, fs: fs < 0 ? null : fs / 1e4 }));
  const degree = new Array(n).fill(0);
  for (const e of edges) { degree[e.a]++; degree[e.b]++; }
  // Connected channels in the middle, lonely ones outside; then a few rounds of springs, the same every time.
  const order = [...degree.keys()].sort((a, b) => degree[b] - degree[a] || a - b);
  const nodes = new Array(n);
  order.forEach((channel, i) => {
    const radius = 15 * Math.sqrt(i + 0.5), angle = i * 2.399963;
    nodes[channel] = { x: radius * Math.cos(angle), y: radius * Math.sin(angle), r: 5.5, label: `channel ${channel}` };
  });
  const rounds = n <= 600 ? 140 : 20;
  for (let round = 0; round < rounds; round++) {
    const step = 1 - round / rounds;
    for (const e of edges) {
      const a = nodes[e.a], b = nodes[e.b], dx = b.x - a.x, dy = b.y - a.y, length = Math.hypot(dx, dy) || 1;
      const pull = 0.06 * step * (length - (18 + 90 * e.d)) / length / Math.sqrt(Math.max(degree[e.a], degree[e.b]));
      a.x += dx * pull; a.y += dy * pull; b.x -= dx * pull; b.y -= dy * pull;
    }
    const cells = new Map(), cell = 16;
    nodes.forEach((node, i) => { const key = Math.floor(node.x / cell) + ":" + Math.floor(node.y / cell); (cells.get(key) || cells.set(key, []).get(key)).push(i); });
    nodes.forEach((node, i) => {
      const cx = Math.floor(node.x / cell), cy = Math.floor(node.y / cell);
      for (let x = cx - 1; x <= cx + 1; x++) for (let y = cy - 1; y <= cy + 1; y++) for (const j of cells.get(x + ":" + y) || []) {
        if (j <= i) continue;
        const other = nodes[j], dx = other.x - node.x || 0.01 * (j - i), dy = other.y - node.y, length = Math.hypot(dx, dy) || 0.1;
        if (length < 15) { const push = (15 - length) / length / 2; node.x -= dx * push; node.y -= dy * push; other.x += dx * push; other.y += dy * push; }
      }
    });
  }
  return { nodes, edges, kind: "channels", layer: index };
}

function choose(index) {
  level.value = String(index);
  picked = hover = -1;
  scene = index < 0 ? layerScene() : channelScene(index);
  // Pairs of layers are listed at any distance, pairs of channels up to where a substitute errs by half.
  slider.max = index < 0 ? 1.57 : 0.52;
  slider.value = index < 0 && !scene.edges.some((e) => e.d <= data.threshold) ? Math.min(1.57, 1.1 * Math.min(1.57, ...scene.edges.map((e) => e.d))) : Math.min(+slider.max, data.threshold);
  const graph = index < 0 ? null : layers[index].graph;
  $("graph-note").textContent = index < 0
    ? `Nodes are layers in the order of the network, sized by their parameters. Lines join layers of one shape whose ${data.calibration ? "weights do nearly the same to the same data, up to a rotation of the outputs" : "spectra are near"}; dashed: equal weights. The ring around a node is the share of its channels that others represent.${data.pairs_left_out ? ` ${data.pairs_left_out} further pairs are not listed.` : ""}`
    : `Nodes are output channels; lines join channels by ${graph.by === "response" ? "the angle of their responses on the samples" : "the distance of their spectra (up to rotations: alike, not exchangeable)"}. Filled: represents others; hollow: represented.${graph.left_out ? ` ${big(graph.left_out)} further pairs are not drawn.` : ""}`;
  fit(); recompute(); describe();
}

// The same greedy cover as in the program, on the pairs that the page knows.
function recompute() {
  const limit = +slider.value;
  scene.visible = scene.edges.filter((e) => e.d <= limit);
  const near = scene.nodes.map(() => []);
  for (const e of scene.visible) { near[e.a].push(e.b); near[e.b].push(e.a); }
  const degree = near.map((list) => list.length), covered = new Array(near.length).fill(false);
  scene.rep = near.map((_, i) => i);
  for (;;) {
    let best = -1;
    for (let i = 0; i < near.length; i++) if (!covered[i] && (best < 0 || degree[i] > degree[best])) best = i;
    if (best < 0) break;
    if (degree[best] === 0) break;
    for (const i of [best, ...near[best].filter((i) => !covered[i])]) {
      covered[i] = true; scene.rep[i] = best;
      for (const other of near[i]) degree[other]--;
    }
  }
  scene.stands = new Array(near.length).fill(0);
  scene.rep.forEach((rep, i) => { if (rep !== i) scene.stands[rep]++; });
  const saved = scene.rep.filter((rep, i) => rep !== i).length;
  $("shown").textContent = `${limit.toFixed(3)} rad · ${saved} of ${near.length} (${percent(saved / Math.max(1, near.length))})`;
  draw();
}

function fit() {
  const box = canvas.getBoundingClientRect(), xs = scene.nodes.map((n) => n.x), ys = scene.nodes.map((n) => n.y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  view.k = Math.min(2.4, (box.width - 90) / Math.max(60, x1 - x0), (box.height - 130) / Math.max(60, y1 - y0));
  view.x = box.width / 2 - view.k * (x0 + x1) / 2; view.y = box.height / 2 - 12 - view.k * (y0 + y1) / 2;
}

function draw() {
  if (!scene) return;
  const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  canvas.width = box.width * ratio; canvas.height = box.height * ratio;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, box.width, box.height);
  const at = (i) => [view.x + view.k * scene.nodes[i].x, view.y + view.k * scene.nodes[i].y];
  const focus = hover >= 0 ? hover : picked, accent = css("--accent"), warm = css("--warm"), line = css("--line"), ink = css("--ink"), node = css("--node"), panel = css("--bg");
  if (scene.chain) {
    ctx.strokeStyle = line; ctx.lineWidth = 1.2; ctx.beginPath();
    scene.nodes.forEach((_, i) => (i ? ctx.lineTo(...at(i)) : ctx.moveTo(...at(i))));
    ctx.stroke();
  }
  const most = Math.max(+slider.value, 1e-6);
  for (const e of scene.visible) {
    const mine = focus < 0 || e.a === focus || e.b === focus;
    const [ax, ay] = at(e.a), [bx, by] = at(e.b);
    ctx.globalAlpha = mine ? (focus < 0 ? 0.25 + 0.5 * (1 - e.d / most) : 0.95) : 0.06;
    ctx.strokeStyle = accent; ctx.lineWidth = mine && focus >= 0 ? 2 : e.same ? 2 : 1.2;
    ctx.setLineDash(e.same ? [5, 4] : []); ctx.beginPath(); ctx.moveTo(ax, ay);
    if (scene.chain) { const bend = 0.16; ctx.quadraticCurveTo((ax + bx) / 2 - bend * (by - ay), (ay + by) / 2 + bend * (bx - ax) - (ay === by ? 0.18 * Math.abs(bx - ax) : 0), bx, by); } else ctx.lineTo(bx, by);
    ctx.stroke();
  }
  ctx.globalAlpha = 1; ctx.setLineDash([]);
  scene.nodes.forEach((n, i) => {
    const [x, y] = at(i), r = Math.max(2.2, n.r * Math.min(view.k, 1.4) * (scene.stands[i] && !scene.chain ? 1.35 : 1));
    if (x < -30 || y < -30 || x > box.width + 30 || y > box.height + 30) return;
    ctx.beginPath(); ctx.arc(x, y, r, 0, 7);
    const represented = scene.rep[i] !== i;
    ctx.fillStyle = scene.stands[i] ? accent : represented ? panel : node; ctx.fill();
    ctx.lineWidth = i === focus ? 2.5 : 1.4; ctx.strokeStyle = i === focus ? ink : represented ? accent : panel; ctx.stroke();
  });
  if (scene.chain) scene.nodes.forEach((n, i) => {
    const share = layers[i].graph ? layers[i].graph.redundancy : 0;
    if (!share) return;
    const [x, y] = at(i), r = Math.max(2.2, n.r * Math.min(view.k, 1.4)) + 3.5;
    ctx.beginPath(); ctx.arc(x, y, r, -Math.PI / 2, -Math.PI / 2 + 2 * Math.PI * share);
    ctx.lineWidth = 2.4; ctx.strokeStyle = warm; ctx.stroke();
  });
  ctx.font = "11px system-ui, sans-serif"; ctx.textAlign = "center"; ctx.fillStyle = css("--dim");
  scene.nodes.forEach((n, i) => {
    if (!(i === focus || (scene.chain && view.k > 1.1) || (!scene.chain && view.k > 2.6))) return;
    const [x, y] = at(i), room = scene.chain ? Math.floor(70 * view.k / 6.2) : 40;
    const text = scene.chain ? (n.label.length > room && i !== focus ? "…" + n.label.slice(1 - room) : n.label) : n.label.replace("channel ", "");
    ctx.fillText(text, x, y + Math.max(2.2, n.r * Math.min(view.k, 1.4)) + 14);
  });
}

function describe() {
  const side = $("side");
  side.replaceChildren();
  const facts = (pairs) => el("dl", {}, ...pairs.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
  const list = (title, items) => items.length ? [el("b", {}, title), el("ol", {}, ...items.slice(0, 40).map((i) => el("li", {}, i)))] : [];
  const around = (i) => scene.visible.filter((e) => e.a === i || e.b === i).sort((x, y) => x.d - y.d);
  if (scene.kind === "layers") {
    if (picked < 0) { side.append(el("h3", {}, "No layer chosen"), "Click a node to see its figures and whom it resembles."); return; }
    const l = layers[picked];
    side.append(el("h3", {}, l.name), facts([["operator", l.op], ["weight", l.weight.join(" × ")], ["parameters", big(l.parameters)], ["σ₁", num(l.sigma1)], ["effective rank", `${num(l.effective)} of ${l.full}`], ["99 % of energy", String(l.energy)]]));
    side.append(...list("Near layers", around(picked).map((e) => `${layers[e.a === picked ? e.b : e.a].name}: ${e.same ? "equal weights" : `d_FS ${num(e.fs)}, W₂ ${num(e.pair.w2)}` + (e.pair.data !== null ? `, on data ${num(e.pair.data)}; standing in errs by ${percent(e.pair.error)}` : "")}`)));
    if (l.graph) { const go = el("button", { type: "button" }, "show its channels"); go.onclick = () => choose(picked); side.append(go); }
    return;
  }
  const l = layers[scene.layer], g = l.graph;
  const states = g.states === "kernels" ? "own kernels, inputs × taps" : g.states === "reader" ? "the reader's kernels" : "none: single rows are all at distance 0";
  if (picked < 0) {
    side.append(el("h3", {}, l.name), facts([["channels", String(g.n)], ["median nearest", num(g.nearest) + " rad"], ...(g.directions === null ? [] : [["directions (99 %)", `${g.directions} of ${g.n}`]]), ["spectra from", states]]), "Click a channel to see who could stand for it.");
    return;
  }
  const rep = scene.rep[picked];
  side.append(el("h3", {}, `channel ${picked}`), facts([["represented by", rep === picked ? "itself" : String(rep)], ["stands for", String(scene.stands[picked])]]));
  side.append(...list("Near channels", around(picked).map((e) => `channel ${e.a === picked ? e.b : e.a}: ${num(e.d)} rad` + (g.by === "response" ? `, error ${percent(Math.sin(e.d))}` : "") + (e.fs !== null && g.by === "response" ? `, d_FS ${num(e.fs)}` : ""))));
}

function nodeAt(event) {
  const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, least = 14;
  scene.nodes.forEach((n, i) => { const d = Math.hypot(view.x + view.k * n.x - x, view.y + view.k * n.y - y) - Math.max(0, n.r * Math.min(view.k, 1.4) - 6); if (d < least) { least = d; best = i; } });
  return best;
}
function zoom(factor, x, y) {
  const k = Math.max(0.05, Math.min(30, view.k * factor)), f = k / view.k;
  view = { k, x: x - f * (x - view.x), y: y - f * (y - view.y) }; draw();
}
let drag = null;
canvas.addEventListener("pointerdown", (e) => { drag = { x: e.clientX, y: e.clientY, moved: 0 }; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointermove", (e) => {
  if (drag) { const dx = e.clientX - drag.x, dy = e.clientY - drag.y; view.x += dx; view.y += dy; drag = { x: e.clientX, y: e.clientY, moved: drag.moved + Math.abs(dx) + Math.abs(dy) }; hideTip(); draw(); return; }
  const found = nodeAt(e);
  if (found !== hover) { hover = found; draw(); }
  if (found < 0) { hideTip(); return; }
  const rep = scene.rep[found], stands = scene.stands[found];
  const more = scene.chain && layers[found].graph ? `\n${percent(layers[found].graph.redundancy)} of ${layers[found].graph.n} channels represented` : "";
  showTip(e, `${scene.nodes[found].label}${more}${rep !== found ? `\nrepresented by ${scene.nodes[rep].label}` : stands ? `\nstands for ${stands} other${stands > 1 ? "s" : ""}` : ""}`);
});
canvas.addEventListener("pointerup", (e) => { if (drag && drag.moved < 4) { picked = nodeAt(e); describe(); draw(); } drag = null; });
canvas.addEventListener("pointerleave", () => { hover = -1; hideTip(); draw(); });
canvas.addEventListener("wheel", (e) => { e.preventDefault(); const box = canvas.getBoundingClientRect(); zoom(Math.exp(-e.deltaY * 0.0015), e.clientX - box.left, e.clientY - box.top); }, { passive: false });
canvas.addEventListener("keydown", (e) => {
  const move = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[e.key], box = canvas.getBoundingClientRect();
  if (move) { view.x += move[0]; view.y += move[1]; draw(); e.preventDefault(); }
  if (e.key === "+" || e.key === "-") zoom(e.key === "+" ? 1.25 : 0.8, box.width / 2, box.height / 2);
});
level.onchange = () => { choose(+level.value); history.replaceState(null, "", +level.value < 0 ? location.pathname : "#" + level.value); };
slider.oninput = () => { recompute(); describe(); };
addEventListener("resize", () => { fit(); draw(); });
const redraw = () => { draw(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
$("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark"; redraw();
};

// ---- spectra ----
const DECADES = 4, W = 200, H = 92, LEFT = 20, BOTTOM = 12;
const yOf = (share) => 4 + (H - BOTTOM - 4) * Math.min(DECADES, -Math.log10(Math.max(share, 1e-12))) / DECADES;
function spark(layer) {
  const box = el("div", { class: "spark" }, el("div", { class: "name", title: layer.name }, "\u200e" + layer.name));
  box.append(el("div", { class: "meta" }, el("span", {}, layer.op), el("span", {}, `${num(layer.effective)} of ${layer.full}`)));
  if (!layer.points.length) { box.append(el("p", { class: "note" }, layer.problem || "no values")); return box; }
  const full = Math.max(1, layer.full - 1), x = (index) => LEFT + (W - LEFT - 4) * index / full;
  const image = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `spectrum of ${layer.name}` });
  for (let d = 0; d <= DECADES; d++) image.append(svg("line", { class: "rule", x1: LEFT, x2: W - 4, y1: yOf(10 ** -d), y2: yOf(10 ** -d) }));
  for (const [d, label] of [[0, "1"], [2, "10⁻²"], [4, "10⁻⁴"]]) { const t = svg("text", { x: 0, y: yOf(10 ** -d) + 3 }); t.textContent = label; image.append(t); }
  const top = layer.sigma1 || 1, points = layer.points.map(([i, v]) => [x(i), yOf(v / top)]);
  const path = points.map((p, i) => (i ? "L" : "M") + p[0].toFixed(1) + " " + p[1].toFixed(1)).join("");
  image.append(svg("path", { class: "area", d: `${path}L${points[points.length - 1][0].toFixed(1)} ${H - BOTTOM}L${points[0][0].toFixed(1)} ${H - BOTTOM}Z` }), svg("path", { class: "curve", d: path }));
  const rank = x(Math.max(0, layer.effective - 1));
  image.append(svg("line", { class: "rank", x1: rank, x2: rank, y1: 4, y2: H - BOTTOM }));
  for (const [text, at, anchor] of [["1", LEFT, "start"], [String(layer.full), W - 4, "end"]]) { const t = svg("text", { x: at, y: H - 2, "text-anchor": anchor }); t.textContent = text; image.append(t); }
  const dot = svg("circle", { class: "dot", r: 0, cx: 0, cy: 0 });
  image.append(dot);
  image.onpointermove = (e) => {
    const area = image.getBoundingClientRect(), at = (e.clientX - area.left) / area.width * W;
    let best = 0;
    points.forEach((p, i) => { if (Math.abs(p[0] - at) < Math.abs(points[best][0] - at)) best = i; });
    dot.setAttribute("r", 3); dot.setAttribute("cx", points[best][0]); dot.setAttribute("cy", points[best][1]);
    const [index, value] = layer.points[best];
    showTip(e, `${layer.name}\nσ${index + 1} = ${num(value, 4)} (${num(value / top)} of σ₁)${value === 0 && !layer.exact ? "\nbelow 1e-7·σ₁: rounding noise" : ""}`);
  };
  image.onpointerleave = () => { dot.setAttribute("r", 0); hideTip(); };
  box.append(image);
  return box;
}
let most = 60;
function plot() {
  const wanted = $("filter").value.toLowerCase();
  const found = layers.filter((l) => !wanted || l.name.toLowerCase().includes(wanted) || l.op.toLowerCase().includes(wanted));
  $("spectra").replaceChildren(...found.slice(0, most).map(spark));
  const more = $("spectra-more");
  more.replaceChildren();
  if (found.length > most) { const all = el("button", { type: "button" }, `show all ${found.length}`); all.onclick = () => { most = Infinity; plot(); }; more.append(`${most} of ${found.length} shown. `, all); }
  if (!found.length) more.append("No layer has that name.");
}
$("filter").oninput = plot;

// ---- table ----
const share = (value) => value === null ? "–" : el("span", {}, percent(value), el("span", { class: "bar" }, el("i", { style: `width:${Math.round(100 * value)}%` })));
const near = new Map();
for (const p of data.pairs) for (const [i, j] of [[p.a, p.b], [p.b, p.a]]) { const d = p.data ?? p.fs; if (!near.has(i) || d < near.get(i)[0]) near.set(i, [d, j]); }
for (const set of data.identical) for (const i of set.layers) near.set(i, [0, set.layers.find((j) => j !== i)]);
const columns = [
  ["layer", (l) => l.name, (l) => l.name, "text"], ["operator", (l) => l.op, (l) => l.op, "text"],
  ["weight", (l) => l.parameters, (l) => l.weight.join("×")], ["σ₁", (l) => l.sigma1, (l) => num(l.sigma1)],
  ["effective rank", (l) => l.full ? l.effective / l.full : 0, (l) => l.problem ? "–" : `${num(l.effective)} / ${l.full}`],
  ["stable rank", (l) => l.stable, (l) => num(l.stable)], ["99 %", (l) => l.energy, (l) => String(l.energy)],
  [data.calibration ? "redundant" : "redundant (spectra)", (l) => l.graph ? l.graph.redundancy : -1, (l) => share(l.graph ? l.graph.redundancy : null)],
  ["nearest", (l) => l.graph && l.graph.nearest !== null ? l.graph.nearest : 9, (l) => l.graph ? num(l.graph.nearest) : "–"],
  ...(data.calibration ? [["directions", (l) => l.graph && l.graph.directions !== null ? l.graph.directions / l.graph.n : 9, (l) => l.graph && l.graph.directions !== null ? `${l.graph.directions} / ${l.graph.n}` : "–"]] : []),
  ["nearest layer", (l) => (near.get(l.index) || [9])[0], (l) => near.has(l.index) ? `${layers[near.get(l.index)[1]].name} (${near.get(l.index)[0] === 0 ? "equal" : num(near.get(l.index)[0])})` : (l.problem || ""), "text"],
  ["cache", (l) => (l.reused ? 1 : 0), (l) => (l.reused ? "reused" : "")],
];
layers.forEach((l, i) => { l.index = i; });
let sorted = { column: -1, up: true };
function fill() {
  const table = $("layers"), head = el("tr"), rows = [...layers];
  columns.forEach(([title, , , kind], i) => {
    const cell = el("th", { class: kind || "", scope: "col", tabindex: "0" }, title);
    if (sorted.column === i) cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
    cell.onclick = () => { sorted = { column: i, up: sorted.column === i ? !sorted.up : kind === "text" }; fill(); };
    cell.onkeydown = (e) => { if (e.key === "Enter") cell.onclick(); };
    head.append(cell);
  });
  if (sorted.column >= 0) {
    const key = columns[sorted.column][1];
    rows.sort((a, b) => { const x = key(a), y = key(b); return (x < y ? -1 : x > y ? 1 : a.index - b.index) * (sorted.up ? 1 : -1); });
  }
  const body = el("tbody");
  for (const layer of rows) {
    const row = el("tr");
    for (const [, , show, kind] of columns) row.append(el("td", { class: kind || "" }, show(layer)));
    row.firstChild.title = layer.name;
    if (layer.graph) { row.style.cursor = "pointer"; row.onclick = () => { choose(layer.index); $("graph-title").scrollIntoView({ behavior: "smooth" }); }; }
    body.append(row);
  }
  table.replaceChildren(el("thead", {}, head), body);
}

// ---- the rest ----
function card(title, text, head, rows) {
  if (!rows.length) return;
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, i) => el("td", { class: i === row.length - 1 ? "text wrap" : "text" }, cell))));
  $("rest").append(el("section", { class: "card" }, el("div", { class: "head" }, el("h2", {}, title)), el("p", {}, text),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { class: "text" }, h)))), el("tbody", {}, ...body)))));
}
card("Equal weights", "Layers whose weights are equal byte by byte can share one tensor.", ["layers", "saves"],
  data.identical.map((set) => [set.layers.map((i) => layers[i].name).join(", "), set.shared ? "nothing: shared already" : big(set.saves) + "B"]));
card("Not analysed", "Nodes that hold weights but are no linear map that can be compared.", ["node", "operator", "reason"], data.passed_over.map((n) => [n.name, n.op, n.because]));
card("May not be cut", "Output channels that must stay, and what holds them.", ["operator", "channels", "reason"], (data.frozen || []).map((f) => [f.name, String(f.channels), f.because]));
if (data.notes.length) $("rest").append(el("p", { class: "note" }, data.notes.join(" ")));

plot(); fill();
// #7 opens the channels of layer 7: a place in the page that can be passed on.
const wanted = () => { const index = location.hash ? +location.hash.slice(1) : -1; return layers[index] && layers[index].graph ? index : -1; };
addEventListener("hashchange", () => choose(wanted()));
choose(wanted());
