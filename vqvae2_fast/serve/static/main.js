// The page: draws, shows what comes, and keeps what was drawn.

import { bitmap, encode, get, Refused, stream, token } from "./api.js";
import { Bench } from "./bench.js";
import { $, clearErrors, Controls, element, rebuild, say, showError } from "./controls.js";
import { Inspector } from "./inspector.js";
import { paintTile } from "./paint.js";

const HISTORY = 60; // batches that are kept
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

let info, palettes, controls, bench, inspector;
let batch = { items: [] }; // what the gallery shows: title, items, kind, request
let past = []; // batches, the newest first
let chosen = 0;
let running = null; // an AbortController
let liveWanted = false; // a setting has changed while something was running
let remembered = null; // the image A of a crossing

// -- showing

const dirty = new Set();

function repaint(item) {
  if (!dirty.size) requestAnimationFrame(paint);
  dirty.add(item);
}

function paint() {
  for (const item of dirty) {
    if (item.canvas) paintTile(item.canvas, item, palettes);
    if (item === bench.item) bench.show();
  }
  dirty.clear();
}

function blank() {
  return { codes: info.levels.map(({ height, width }) => Array.from({ length: height }, () => Array(width).fill(-1))) };
}

function showGallery() {
  $("title").textContent = batch.title;
  $("gallery").className = batch.items.length <= 4 ? "few" : "";
  const { height, width } = info.image, finest = info.levels.at(-1);
  const focused = [...$("gallery").children].indexOf(document.activeElement);
  $("gallery").replaceChildren(...batch.items.map((item, n) => {
    const scale = Math.ceil(128 / width);
    item.canvas = element("canvas", { width: Math.max(width, finest.width) * scale, height: Math.max(height, finest.height) * scale });
    const tile = element("button", { type: "button", className: "tile", onclick: () => choose(n) }, item.canvas);
    tile.setAttribute("aria-label", `Image ${n + 1} of ${batch.items.length}, ${batch.title}`);
    repaint(item);
    return tile;
  }));
  $("gallery").children[focused]?.focus();
  inspector.items = batch.items;
  if (inspector.code !== null) inspector.show();
  choose(Math.min(chosen, batch.items.length - 1));
}

function choose(n) {
  chosen = n;
  [...$("gallery").children].forEach((tile, other) => tile.setAttribute("aria-pressed", other === n));
  $("bench").hidden = false;
  bench.choose(batch.items[n]);
  showFacts();
  markTiles();
}

function showFacts() {
  const item = batch.items[chosen];
  if (!item) return;
  const { card, upload } = item;
  $("name").textContent = upload ? batch.title : `Image ${chosen + 1}`;
  const facts = [];
  if (card) {
    const { label, seed, first_sample: sample } = card.request;
    if (info.classes.length) facts.push(label === null ? "no class" : info.classes[label]);
    facts.push(`seed ${seed}, number ${sample}`);
    const bits = Object.entries(item.log_prob).map(([level, nats]) => `${level} ${Math.round(-nats / Math.LN2)}`);
    facts.push(`bits under the priors: ${bits.join(", ")}`);
    if (item.effective_candidates) {
      const found = Object.entries(item.effective_candidates).map(([level, count]) => `${level} ${count.toFixed(1)}`);
      facts.push(`candidates that count: ${found.join(", ")}`);
    }
  }
  if (upload) {
    facts.push(upload.psnr === null ? "exact" : `reconstructed at ${upload.psnr.toFixed(2)} dB`);
    if (upload.bits) {
      const bits = Object.values(upload.bits), total = bits.reduce((a, b) => a + b);
      const each = Object.entries(upload.bits).map(([level, count]) => `${level} ${count}`);
      facts.push(`${total} bits (${each.join(", ")}), ${(total / info.image.height / info.image.width).toFixed(2)} a pixel`);
    } else facts.push(upload.no_vq2);
  }
  $("facts").textContent = facts.join(" · ");
  bench.showUpload(upload?.original);
  $("save-vq2").hidden = !upload?.vq2;
  $("save-png").disabled = !item.png;
  for (const id of ["again", "save-card"]) $(id).disabled = !card;
  const { whole } = bench;
  for (const id of ["complete", "vary", "mark"]) $(id).disabled = !whole;
  $("cross").disabled = !whole || !remembered;
}

function markTiles() {
  const { found } = bench;
  [...$("gallery").children].forEach((tile, n) => {
    tile.classList.toggle("has-code", Boolean(found) && batch.items[n].codes[found.level].flat().includes(found.code));
  });
}

// -- history

// Keeps a batch, which need not be what is shown now; it may stand for another one.
function remember(made, replaced = null) {
  past = [made, ...past.filter((old) => old !== made && old !== replaced)].slice(0, HISTORY);
  showHistory();
}

function showHistory() {
  rebuild($("history"), ...past.map((old) => {
    const canvas = element("canvas", { width: 256, height: 128 }), context = canvas.getContext("2d");
    const columns = Math.max(2, Math.ceil(Math.sqrt(2 * old.items.length))), side = Math.floor(256 / columns);
    const { height, width } = info.image, down = Math.round(side * height / width);
    const small = element("canvas", { width: side, height: down });
    old.items.forEach((item, n) => {
      paintTile(small, item, palettes);
      context.drawImage(small, (n % columns) * side, Math.floor(n / columns) * down);
    });
    const button = element("button", { type: "button", onclick: () => restore(old) }, canvas,
      element("span", { textContent: old.title }));
    if (old === batch) button.setAttribute("aria-current", "true");
    return element("li", {}, button);
  }));
}

function restore(old) {
  stop();
  batch = old;
  if (old.request) {
    controls.set(old.request);
    $("seed").value = old.request.seed;
    controls.label = old.request.label;
  }
  showGallery();
  showHistory();
}

// -- drawing

// Begins something that can be stopped, and ends what was running.
function start() {
  running?.abort();
  liveWanted = false;
  $("stop").disabled = false;
  return running = new AbortController();
}

function stop() {
  liveWanted = false;
  running?.abort();
}

function finish(own) {
  if (running !== own) return;
  running = null;
  $("stop").disabled = true;
  if (liveWanted) redrawLive();
}

// Draws a request. `live` replaces the images one by one, without showing rows.
async function draw(path, request, { title, kind, live = false }) {
  clearErrors();
  const own = start(), before = batch;
  const begun = performance.now(), pace = live ? 0 : controls.pace;
  const made = { title, kind, request, items: live ? [...batch.items] : [] };
  let rows = 0, images = 0, firstRow = 0; // with candidates, images come without rows
  say("Drawing…");
  try {
    if (request.seed > Number.MAX_SAFE_INTEGER) {
      throw new Refused({ field: "seed", expected: `Expected a seed up to ${Number.MAX_SAFE_INTEGER}, because browsers round larger ones.`, remedy: "Draw with this one over the HTTP API." });
    }
    for await (const [name, content] of stream(path, { ...request, previews: pace > 0 }, own.signal)) {
      own.signal.throwIfAborted();
      if (name === "start") {
        if (!live) {
          made.items = Array.from({ length: request.count }, blank); // a count that the server has accepted
          batch = made;
          chosen = 0;
          showGallery();
        }
      } else if (name === "row") {
        rows += 1;
        if (live) continue;
        const level = info.levels.findIndex((found) => found.name === content.level);
        content.images.forEach((index, n) => {
          made.items[index].codes[level][content.row] = content.codes[n];
          repaint(made.items[index]);
        });
        firstRow ||= performance.now() - begun;
        if (rows === 1) requestAnimationFrame(() => performance.mark("first-row"));
        if (pace) await wait(pace);
      } else if (name === "preview") {
        made.items[content.index].preview = await bitmap(content.png);
        repaint(made.items[content.index]);
      } else if (name === "image") {
        images += 1;
        const item = Object.assign(live ? blank() : made.items[content.index], content, { image: await bitmap(content.png) });
        made.items[content.index] = item;
        if (live) item.canvas = before.items[content.index]?.canvas;
        repaint(item);
      } else if (name === "error") throw new Refused(content);
      else if (name === "done") {
        if (live) {
          batch = made;
          showGallery();
        }
        const first = firstRow ? `, the first row after ${Math.round(firstRow)} ms` : "";
        say(`${plural(request.count, "image")} in ${content.seconds.toFixed(2)} s${first}.`);
        performance.mark("drawn");
      }
    }
    remember(made, live ? before : null);
  } catch (error) {
    showError(error);
    // A newer request tells its own story.
    if (error.name === "AbortError" && running === own) say(`Stopped after ${rows ? plural(rows, "row") : plural(images, "image")}.`);
    if (live) before.items.forEach(repaint); // some tiles may show new images
    else if (rows || images) remember(made);
  } finally {
    showFacts();
    markTiles();
    if (inspector.code !== null) inspector.show();
    finish(own);
  }
}

function className(label) {
  if (!info.classes.length) return "Images";
  if (label === null || typeof label === "string") return label ?? "No class";
  return Array.isArray(label) ? "Each class" : info.classes[label];
}

// What a hand asks for has a new seed each time, if it is to.
function renewSeed() {
  if ($("new-seed").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

function drawNew(event) {
  event?.preventDefault();
  performance.clearMarks();
  performance.mark("click");
  if (event) renewSeed();
  const request = controls.request();
  return draw("v1/images", request, { title: `${className(request.label)}, seed ${request.seed}`, kind: "draw" });
}

// Draws again with the same seed after a setting has changed; `finish` does if it changes meanwhile.
async function redrawLive() {
  liveWanted = Boolean(running) && $("live").checked;
  if (running || !$("live").checked || batch.kind !== "draw" || !batch.items.length) return;
  const request = { ...controls.request(batch.items.length), seed: batch.request.seed };
  await draw("v1/images", request, { title: `${className(request.label)}, seed ${request.seed}`, kind: "draw", live: true });
}

// Draws from the chosen image.
function drawFrom(path, more, title) {
  renewSeed();
  const request = { ...controls.request(), ...more };
  return draw(path, request, { title, kind: "edit" });
}

const given = (item) => ({ codes: item.codes });

async function open(file) {
  clearErrors();
  const own = start();
  try {
    if (/\.json$/i.test(file.name)) return await openCard(JSON.parse(await file.text()));
    say("Encoding…");
    const label = controls.labelFor(1);
    const found = await encode(file, typeof label === "number" ? label : null, own.signal);
    const item = { ...blank(), codes: found.codes, png: found.reconstruction, image: await bitmap(found.reconstruction) };
    item.upload = { ...found, original: await bitmap(found.image) };
    own.signal.throwIfAborted();
    batch = { title: file.name, kind: "upload", items: [item] };
    chosen = 0;
    showGallery();
    remember(batch);
    say("");
  } catch (error) {
    showError(error instanceof SyntaxError ? new Refused({ field: "image", expected: "Expected a card, but it is no JSON.", remedy: "" }) : error);
    if (error.name === "AbortError" && running === own) say("Stopped.");
  } finally {
    finish(own);
  }
}

async function openCard(card) {
  if (!String(card?.endpoint).startsWith("/v1/") || !card.request) {
    throw new Refused({ field: "image", expected: "Expected a card with an endpoint and a request.", remedy: "Open one that this page has saved." });
  }
  if (card.pipeline !== info.pipeline) {
    throw new Refused({ field: "image", expected: `Expected a card of pipeline ${info.pipeline}, got one of ${card.pipeline}.`, remedy: "Start the server with the pipeline of the card." });
  }
  const request = { count: 1, ...card.request };
  await draw(card.endpoint.slice(1), request, { title: `From a card, seed ${request.seed}`, kind: "card" });
}

// Draws the chosen image from its card and compares every byte.
async function again() {
  const item = batch.items[chosen];
  clearErrors();
  say("Drawing it again…");
  try {
    for await (const [name, content] of stream(item.card.endpoint.slice(1), item.card.request)) {
      if (name === "error") throw new Refused(content);
      if (name === "image") {
        say(content.png === item.png ? "Drawn again: the same image, byte for byte." : "Drawn again: ANOTHER image. Please report this.");
      }
    }
  } catch (error) {
    showError(error);
  }
}

function save(name, content, type) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

function fileName() {
  const { card } = batch.items[chosen];
  return card ? `seed-${card.request.seed}-${card.request.first_sample}` : batch.title.replace(/\.\w+$/, "");
}

function connect() {
  const item = () => batch.items[chosen];
  $("controls").onsubmit = drawNew;
  $("stop").onclick = stop;
  $("open").onclick = () => $("file").click();
  $("file").onchange = () => { if ($("file").files[0]) open($("file").files[0]); $("file").value = ""; };
  document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
  document.ondragleave = () => document.body.classList.remove("dropping");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  };
  $("fill").onclick = () => {
    const more = { source: given(item()), code_masks: item().masks, candidates: Number($("candidates").value) };
    return drawFrom("v1/fill", more, "Redrawn where painted");
  };
  $("keep").oninput = () => { $("keep-value").textContent = `${$("keep").value} %`; };
  $("complete").onclick = () => drawFrom("v1/complete", { source: given(item()), keep: $("keep").value / 100 }, `Upper ${$("keep").value} % kept`);
  $("vary").onclick = () => drawFrom("v1/variations", { source: given(item()), levels: info.levels.length - 1 }, "Coarse codes kept");
  $("mark").onclick = () => {
    remembered = item();
    say("This image is A now. Choose another one to take the fine codes from.");
    showFacts();
  };
  $("cross").onclick = () => {
    const sources = info.levels.map((_, level) => given(level < info.levels.length - 1 ? remembered : item()));
    return drawFrom("v1/cross", { sources, count: 1 }, "Coarse codes of A, fine codes of B");
  };
  $("save-png").onclick = () => save(`${fileName()}.png`, bytes(item().png), "image/png");
  $("save-card").onclick = () => save(`${fileName()}.json`, JSON.stringify(item().card), "application/json");
  $("save-vq2").onclick = () => save(`${fileName()}.vq2`, bytes(item().upload.vq2), "application/octet-stream");
  $("again").onclick = again;
}

async function begin() {
  info = await get("v1/info");
  $("metrics").hidden = Boolean(token); // a link sends no token
  const { levels } = await get("v1/codebooks");
  levels.forEach((level, n) => Object.assign(level, { name: info.levels[n].name }));
  palettes = levels.map((level) => level.palette);
  controls = new Controls(info, redrawLive);
  inspector = new Inspector(levels, (found) => {
    bench.found = found;
    bench.show();
    markTiles();
  });
  bench = new Bench(info, palettes, (level, code) => inspector.choose(level, code));
  const maps = info.levels.map(({ name, height, width, codes }) => `${name} ${height}×${width} of ${codes} codes`);
  $("about").textContent = `Images of ${info.image.height}×${info.image.width} from two steps: maps of codes (${maps.join(", ")}), then pixels.`;
  $("settings").open = !matchMedia("(max-width: 820px)").matches;
  connect();
  await inspector.load();
  inspector.show();
  await drawNew();
}

begin().catch((error) => {
  $("about").textContent = "The models could not be loaded.";
  $("draw").disabled = true;
  showError(error);
});
